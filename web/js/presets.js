// Presets of the Rectified SpaAttn node: choosing one fills the inputs it names, and changing one
// of those by hand goes back to "custom". The values come with the node's definition; the server
// applies a preset by itself, so a graph that was never opened here renders the same.

import { app } from "../../../scripts/app.js";

const NODE = "RectifiedSpaAttn";
const CUSTOM = "custom";
const MAX_HOPS = 64;

/** The model family as the server will see it, from the file names of the loader upstream. */
function familyOf(node) {
  let current = node;
  for (let hop = 0; current && hop < MAX_HOPS; hop++) {
    const files = (current.widgets ?? []).map((widget) => widget.value);
    if (files.some((value) => typeof value === "string" && /hunyuan/i.test(value))) {
      return "hunyuan_video";
    }
    const slot = (current.inputs ?? []).findIndex((input) => input.type === "MODEL");
    current = slot < 0 ? null : current.getInputNode(slot);
  }
  return "wan";
}

function connect(node, families) {
  const widget = (name) => node.widgets?.find((each) => each.name === name);
  const preset = widget("preset");
  if (!preset) return;
  const valuesOf = (name) => families[familyOf(node)]?.[name];
  let isFilling = false;

  const listen = (target, react) => {
    const before = target.callback;
    target.callback = function (...args) {
      const result = before?.apply(this, args);
      react();
      return result;
    };
  };

  listen(preset, () => {
    const values = valuesOf(preset.value);
    if (!values) return; // "custom": the inputs stay as they are
    isFilling = true;
    for (const [name, value] of Object.entries(values)) {
      const target = widget(name);
      if (!target || target.value === value) continue;
      target.value = value;
      target.callback?.(value);
    }
    isFilling = false;
    node.setDirtyCanvas?.(true, true);
  });

  const names = new Set(Object.values(families).flatMap((each) => Object.values(each).flatMap(Object.keys)));
  for (const name of names) {
    const target = widget(name);
    if (!target) continue;
    listen(target, () => {
      const values = isFilling ? null : valuesOf(preset.value);
      if (values && values[name] !== target.value) {
        preset.value = CUSTOM;
        node.setDirtyCanvas?.(true, true);
      }
    });
  }
}

app.registerExtension({
  name: "rectified_spaattn.presets",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== NODE) return;
    const families = nodeData.input?.optional?.preset?.[1]?.rspa_presets;
    if (!families) return;
    const created = nodeType.prototype.onNodeCreated;
    nodeType.prototype.onNodeCreated = function (...args) {
      const result = created?.apply(this, args);
      connect(this, families);
      return result;
    };
  },
});
