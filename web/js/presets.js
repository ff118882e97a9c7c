// A preset of the Rectified SpaAttn node fills in its values, and changing one of them by hand goes
// to "custom", or to the preset that has them all. The presets come with the node's definition; the
// server applies them by itself, so a graph that was never opened here renders the same.

import { app } from "../../../scripts/app.js";

const NODE = "RectifiedSpaAttn";
const CUSTOM = "custom";

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

function listen(widget, react) {
  const before = widget.callback;
  widget.callback = function (...args) {
    const result = before?.apply(this, args);
    react();
    return result;
  };
}

/** The preset that the node's values are those of: `current` if it still is, else "custom". */
function presetWith(node, presets, current) {
  const is = (name) =>
    Object.entries(presets[name] ?? { none: true }).every(
      ([each, value]) => widgetOf(node, each)?.value === value,
    );
  return [current, ...Object.keys(presets)].find(is) ?? CUSTOM;
}

function connectPresets(node, presets) {
  const preset = widgetOf(node, "preset");
  if (!preset) return;
  let isFilling = false;

  const fill = () => {
    const values = presets[preset.value];
    if (!values) return; // "custom": the values stay as they are
    isFilling = true;
    for (const [name, value] of Object.entries(values)) {
      const widget = widgetOf(node, name);
      if (!widget || widget.value === value) continue;
      widget.value = value;
      widget.callback?.(value);
    }
    isFilling = false;
    node.setDirtyCanvas?.(true, true);
  };

  listen(preset, fill);
  node.showPreset = fill;
  for (const name of new Set(Object.values(presets).flatMap(Object.keys))) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    listen(widget, () => {
      if (isFilling) return;
      preset.value = presetWith(node, presets, preset.value);
      node.setDirtyCanvas?.(true, true);
    });
  }
}

/** Let `react` run after a method of a node type. */
function after(prototype, method, react) {
  const before = prototype[method];
  prototype[method] = function (...args) {
    const result = before?.apply(this, args);
    react(this);
    return result;
  };
}

app.registerExtension({
  name: "rectified_spaattn.presets",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== NODE) return;
    const presets = nodeData.input?.required?.preset?.[1]?.rspa_presets;
    if (!presets) return;
    after(nodeType.prototype, "onNodeCreated", (node) => connectPresets(node, presets));
    after(nodeType.prototype, "onConfigure", (node) => node.showPreset?.());
  },
});
