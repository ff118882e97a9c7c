// While there is no file to choose, the page shows Load Profile's choice as "undefined": leave it
// empty. The node then says how to make a profile.

import { app } from "../../../scripts/app.js";

const NODE = "RectifiedSpaAttnLoadProfile";

function leaveEmpty(node) {
  if (node.comfyClass !== NODE) return;
  const widget = node.widgets?.find((each) => each.name === "profile_name");
  if (widget) widget.value ??= "";
}

app.registerExtension({
  name: "rectified_spaattn.profiles",
  nodeCreated: leaveEmpty,
  loadedGraphNode: leaveEmpty,
});
