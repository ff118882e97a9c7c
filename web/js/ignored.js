// Values without an effect are shown as switched off, in classic nodes and in Nodes 2.0: those that
// a connected node replaces, and those that another value of the same node rules out. A node that
// is muted or bypassed replaces nothing.

import { app } from "../../../scripts/app.js";

const SETTINGS = ["preset", "sparsity", "block_size", "start_percent", "end_percent", "ramp"];
const BY_SCHEDULE = ["sparsity", "start_percent", "end_percent", "ramp"];
const CURVE = ["start_sparsity", "end_sparsity", "curve", "start_percent", "end_percent", "ramp"];
const SOURCES = [
  "RectifiedSpaAttnSchedule",
  "RectifiedSpaAttnLoadProfile",
  "RectifiedSpaAttnSaveProfile",
  "RectifiedSpaAttnProbeResult",
];
const MUTED = 2;
const BYPASSED = 4;
// Where a link begins that comes into a subgraph.
const SUBGRAPH_INPUT = -10;
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

function allNodes() {
  const root = app.rootGraph ?? app.graph;
  const graphs = root ? [root, ...(root.subgraphs?.values() ?? [])] : [];
  return graphs.flatMap((graph) => graph.nodes ?? []);
}

/** Whether something comes through this input when the graph runs. */
function receives(node, input) {
  const graph = node.graph;
  if (input?.link == null || !graph) return false;
  const link = graph.getLink?.(input.link) ?? graph.links?.[input.link];
  if (Number(link?.origin_id) === SUBGRAPH_INPUT) {
    const name = graph.inputs?.[link.origin_slot]?.name;
    const hosts = allNodes().filter((each) => each.subgraph === graph);
    const inputOf = (host) => host.inputs?.find((each) => each.name === name);
    return hosts.some((host) => inputOf(host)?.widget || receives(host, inputOf(host)));
  }
  const source = link && graph.getNodeById(link.origin_id);
  if (source?.mode === MUTED) return false;
  if (source?.mode !== BYPASSED) return true;
  // What a bypassed node is given of this type goes on.
  return source.inputs?.some((each) => each.type === link.type && receives(source, each)) ?? false;
}

function show(node, ignored) {
  const widgetOf = (name) => node.widgets?.find((widget) => widget.name === name);
  const isLinked = (name) => receives(node, node.inputs?.find((each) => each.name === name));
  const is = (name, ...values) => {
    const own = widgetOf(name)?.value;
    const isLike = (value) => (value instanceof RegExp ? value.test(own) : value === own);
    return !isLinked(name) && values.some(isLike);
  };
  const names = new Set(ignored(is, isLinked));
  for (const widget of node.widgets ?? []) widget.disabled = names.has(widget.name);
  node.setDirtyCanvas?.(true, true);
}

function showAll() {
  for (const node of allNodes()) if (IGNORED[node.type]) show(node, IGNORED[node.type]);
}

/** Call `react` after each change of the node's mode; whatever listens already still does. */
function watchMode(node, react) {
  const before = Object.getOwnPropertyDescriptor(node, "mode");
  let own = node.mode;
  Object.defineProperty(node, "mode", {
    configurable: true,
    enumerable: true,
    get: () => (before?.get ? before.get.call(node) : own),
    set(mode) {
      own = mode;
      before?.set?.call(node, mode);
      react();
    },
  });
}

app.registerExtension({
  name: "rectified_spaattn.ignored",
  nodeCreated(node) {
    // Later: the page may still make the mode a property of its own.
    if (SOURCES.includes(node.comfyClass)) setTimeout(() => watchMode(node, showAll));
  },
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
