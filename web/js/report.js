// Report and Probe Result show a compact picture, and grow as high as it. A double click on them, or
// the node's menu, opens the whole one in a tab of its own.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const LABELS = {
  RectifiedSpaAttnReport: "Open the whole report",
  RectifiedSpaAttnProbeResult: "Open the whole picture",
};
const WHOLE = "rspa_whole";
// At this width, in pixels, the text of the compact picture is as large as a node's.
const WIDTH = 330;

// Above and below the picture, with the line in which the page says its size.
const AROUND = 30;

const pictures = new WeakMap();

function address({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

function open(node) {
  window.open(address(pictures.get(node)), "_blank");
}

// Where sockets and widgets end. The page's preview is a widget, too, by a name with two dollars.
function head(node) {
  const sockets = LiteGraph.NODE_SLOT_HEIGHT * Math.max(node.inputs.length, node.outputs.length);
  const widgets = (node.widgets ?? []).filter((widget) => !widget.name.startsWith("$$"));
  const height = LiteGraph.NODE_WIDGET_HEIGHT;
  return Math.max(sockets, ...widgets.map((each) => each.y + (each.computedHeight ?? height)));
}

// The page itself makes room for a low picture only. What somebody has made higher stays.
function grow(node, picture) {
  const image = new Image();
  image.onload = () => {
    const height = head(node) + AROUND + (node.size[0] * image.height) / image.width;
    if (node.size[1] < height) node.setSize([node.size[0], height]);
    node.setDirtyCanvas(true, true);
  };
  image.src = address(picture);
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
      if (output?.images?.length) grow(this, output.images[0]);
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
