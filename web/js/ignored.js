// Values without an effect are shown as switched off, in classic nodes and in Nodes 2.0: those that
// a connected node replaces, and those that another value of the same node rules out.

import { app } from "../../../scripts/app.js";

const SETTINGS = ["preset", "sparsity", "block_size", "start_percent", "end_percent", "ramp"];
const BY_SCHEDULE = ["sparsity", "start_percent", "end_percent", "ramp"];
const CURVE = ["start_sparsity", "end_sparsity", "curve", "start_percent", "end_percent", "ramp"];
const WITHOUT_AVERAGES = ["paper", "none"];
// As the server reads a list without an entry.
const NO_ENTRY = /^[\s,]*$|^\s*none\s*$/i;

// By type of node: the widgets without an effect. `is` compares a widget's value with some, or with
// an expression; of one that comes through a link, nothing is known.
const IGNORED = {
  RectifiedSpaAttn: (is, isLinked) => [
    ...(is("enabled", false) ? SETTINGS : []),
    ...(isLinked("schedule") ? BY_SCHEDULE : []),
    ...(isLinked("profile") ? ["sparsity"] : []),
  ],
  RectifiedSpaAttnOptions: (is) => (is("rectification", ...WITHOUT_AVERAGES) ? ["tail_keys"] : []),
  RectifiedSpaAttnSchedule: (is, isLinked) => {
    if (!isLinked("steps") && !is("steps", NO_ENTRY)) return [...CURVE, "preview_shift"];
    return [
      ...(is("curve", "constant") ? ["end_sparsity"] : []),
      ...(is("ramp", 0) ? ["preview_shift"] : []),
    ];
  },
};

function show(node, ignored) {
  const widgetOf = (name) => node.widgets?.find((widget) => widget.name === name);
  const isLinked = (name) => node.inputs?.find((each) => each.name === name)?.link != null;
  const is = (name, ...values) => {
    const own = widgetOf(name)?.value;
    const isLike = (value) => (value instanceof RegExp ? value.test(own) : value === own);
    return !isLinked(name) && values.some(isLike);
  };
  const names = new Set(ignored(is, isLinked));
  for (const widget of node.widgets ?? []) widget.disabled = names.has(widget.name);
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "rectified_spaattn.ignored",
  beforeRegisterNodeDef(nodeType, nodeData) {
    const ignored = IGNORED[nodeData.name];
    if (!ignored) return;
    const { onNodeCreated, onConnectionsChange, onConfigure } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function (...args) {
      const result = onNodeCreated?.apply(this, args);
      for (const widget of this.widgets ?? []) {
        const before = widget.callback;
        widget.callback = (...values) => {
          const answer = before?.apply(widget, values);
          show(this, ignored);
          return answer;
        };
      }
      show(this, ignored);
      return result;
    };
    nodeType.prototype.onConnectionsChange = function (...args) {
      const result = onConnectionsChange?.apply(this, args);
      show(this, ignored);
      return result;
    };
    nodeType.prototype.onConfigure = function (...args) {
      const result = onConfigure?.apply(this, args);
      // Links of a loaded graph are there once all of it is configured.
      setTimeout(() => show(this, ignored));
      return result;
    };
  },
});
