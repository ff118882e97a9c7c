// The Rectified SpaAttn node shows what is live: a preset fills in its values, changing one of them
// by hand goes to "custom" (or to the preset that has them all), and values that a connected node
// replaces are shown as switched off. The presets come with the node's definition; the server
// applies them by itself, so a graph that was never opened here renders the same.

import { app } from "../../../scripts/app.js";

const NODE = "RectifiedSpaAttn";
const CUSTOM = "custom";

// Values that a connected socket replaces.
const REPLACED_BY = {
  schedule: ["sparsity", "start_percent", "end_percent", "ramp"],
  profile: ["sparsity"],
};

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

/** Switch off the widgets whose values a connected node replaces; classic and Nodes 2.0 show it. */
function showReplaced(node) {
  const replaced = new Set();
  for (const [socket, names] of Object.entries(REPLACED_BY)) {
    const input = node.inputs?.find((each) => each.name === socket);
    if (input?.link != null) names.forEach((name) => replaced.add(name));
  }
  for (const name of new Set(Object.values(REPLACED_BY).flat())) {
    const widget = widgetOf(node, name);
    if (widget) widget.disabled = replaced.has(name);
  }
  node.setDirtyCanvas?.(true, true);
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
    after(nodeType.prototype, "onConnectionsChange", showReplaced);
    // Links of a loaded graph are there once all of it is configured.
    after(nodeType.prototype, "onConfigure", (node) => {
      node.showPreset?.();
      setTimeout(() => showReplaced(node));
    });
  },
});
