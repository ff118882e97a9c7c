// Report and Probe Result show a compact picture. A double click on it, or the node's menu, opens
// the whole one in a tab of its own.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const LABELS = {
  RectifiedSpaAttnReport: "Open the whole report",
  RectifiedSpaAttnProbeResult: "Open the whole picture",
};
const WHOLE = "rspa_whole";
// At this width, in pixels, the text of the compact picture is as large as a node's.
const WIDTH = 330;

const pictures = new WeakMap();

function open(node) {
  const { filename, subfolder, type } = pictures.get(node);
  window.open(api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`), "_blank");
}

app.registerExtension({
  name: "rectified_spaattn.report",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!(nodeData.name in LABELS)) return;
    const { onExecuted, onDblClick } = nodeType.prototype;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      const picture = output?.[WHOLE]?.[0];
      if (picture) pictures.set(this, picture);
    };
    nodeType.prototype.onDblClick = function () {
      onDblClick?.apply(this, arguments);
      if (pictures.has(this)) open(this);
    };
  },
  nodeCreated(node) {
    // The size of a stored node comes later and stays.
    if (node.comfyClass in LABELS && node.size[0] < WIDTH) node.setSize([WIDTH, node.size[1]]);
  },
  getNodeMenuItems(node) {
    if (!pictures.has(node)) return [];
    return [{ content: LABELS[node.comfyClass], callback: () => open(node) }];
  },
});
