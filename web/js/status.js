// The line on a Rectified SpaAttn node belongs to the run at hand. The server sends lines while
// nodes run. It knows nothing of nodes that are bypassed or muted, and says nothing of those whose
// result it has already or that a run does not reach; the page adds lines in the open graph only.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const OURS = "RectifiedSpaAttn";
const LINE = "$$node-text-preview"; // the page's widget for lines from the server
const OFF_MODES = new Set([2, 4]); // muted, bypassed
const WAITING = "waiting";
const HOST_LINE_HEIGHT = 90; // four rows
const CLASS = "rspa-line";
// Of the page's box around a line, in pixels: at its sides, above and below, and a row.
const SIDES = 52;
const ENDS = 36;
const ROW = 16;
const MAX_ROWS = 8;
const NOT_RUN = "not run this time; before: ";

// What nodes say, and what those that have not run yet said before this run.
const lines = new Map();
const before = new Map();
// The widget of the line of each subgraph.
const hostLines = new WeakMap();

const rootGraph = () => app.rootGraph ?? app.graph;
const widgetOf = (node) => node.widgets?.find((widget) => widget.name === LINE);

/** How many rows `text` takes, broken between words. */
function countRows(text, width) {
  const measure = document.createElement("canvas").getContext("2d");
  measure.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const widthOf = (words) => measure.measureText(words).width;
  let rows = 0;
  for (const line of text.split("\n")) {
    let row = "";
    rows += 1;
    for (const word of line.split(" ")) {
      const longer = row ? `${row} ${word}` : word;
      if (row && widthOf(longer) > width) rows += 1;
      row = row && widthOf(longer) > width ? word : longer;
    }
  }
  return rows;
}

/** Break the page's line between words, with the whole of it as the tooltip. */
function dress(widget, text) {
  widget.props = { ...widget.props, class: CLASS, title: text };
}

/** Make room for a line that is longer than the page provides for. */
function makeRoom(node, widget, text) {
  const height = () => {
    const rows = Math.min(countRows(text, node.size[0] - SIDES), MAX_ROWS);
    return ENDS + ROW * Math.max(rows, 2);
  };
  widget.options.getMinHeight = height;
  const needed = node.computeSize()[1];
  if (node.size[1] < needed) node.setSize([node.size[0], needed]);
}

function setLine(node, text) {
  lines.set(node, text);
  const widget = widgetOf(node);
  if (widget) {
    dress(widget, text);
    widget.value = text;
    makeRoom(node, widget, text);
    node.setDirtyCanvas?.(true, true);
  } else if (hostLines.has(node)) {
    dress(hostLines.get(node), text);
    hostLines.get(node).value = text;
  }
}

/**
 * The page does not find the line among the widgets of a subgraph: it adds one with every text, at
 * the node's top, over its slots. Keep one, beneath the node.
 */
function keepOneLine(host) {
  if (Object.hasOwn(host, "addCustomWidget")) return;
  const add = host.addCustomWidget;
  host.addCustomWidget = function (widget) {
    if (widget.name === LINE) {
      hostLines.get(this)?.onRemove?.();
      hostLines.set(this, widget);
      Object.defineProperty(widget, "y", { get: () => this.size[1], set() {} });
      widget.computedHeight = HOST_LINE_HEIGHT;
    }
    return add.call(this, widget);
  };
}

/**
 * The page adds lines in the open graph only, and hides those of subgraphs when another is opened:
 * show all that the nodes of this graph say.
 */
function showLines() {
  for (const node of app.canvas.graph?.nodes ?? []) {
    const text = lines.get(node);
    if (!text || widgetOf(node)) continue;
    // An id without those of subgraphs is looked up in the open graph.
    api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text, isRepeated: true });
    setLine(node, text);
  }
}

function removeLine(node) {
  const widget = widgetOf(node);
  if (widget) {
    widget.onRemove?.();
    node.widgets.splice(node.widgets.indexOf(widget), 1);
    node.setDirtyCanvas?.(true, true);
  }
  hostLines.get(node)?.onRemove?.();
  hostLines.delete(node);
  lines.delete(node);
}

/** Our nodes, and the subgraphs around them, to whether they are part of what runs. */
function places(graph, isOn = true, found = new Map()) {
  for (const node of graph?.nodes ?? []) {
    const runs = isOn && !OFF_MODES.has(node.mode);
    const note = (is) => found.set(node, is || (found.get(node) ?? false));
    if (node.isSubgraphNode?.()) {
      const inner = places(node.subgraph, runs);
      for (const [each, is] of inner) found.set(each, is || (found.get(each) ?? false));
      if (inner.size) note([...inner.values()].some(Boolean));
    } else if (node.type?.startsWith(OURS)) {
      note(runs);
    }
  }
  return found;
}

function nodeAt(id) {
  let graph = rootGraph();
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(part) ?? graph?.getNodeById?.(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

function begin() {
  before.clear();
  for (const [node, runs] of places(rootGraph())) {
    const text = lines.get(node);
    if (!text) continue;
    if (runs) {
      before.set(node, text.startsWith(NOT_RUN) ? text.slice(NOT_RUN.length) : text);
      setLine(node, WAITING);
    } else {
      removeLine(node);
    }
  }
}

/** The run is over: what is still waiting has not been run. */
function end(words) {
  for (const [node, text] of before) {
    if (lines.get(node) === WAITING) setLine(node, words(text));
  }
  before.clear();
}

app.registerExtension({
  name: "rectified_spaattn.status",
  nodeCreated(node) {
    if (node.isSubgraphNode?.()) keepOneLine(node);
  },
  setup() {
    const style = document.createElement("style");
    style.textContent = `.${CLASS} .break-all { word-break: normal; overflow-wrap: anywhere; }`;
    document.head.append(style);
    app.canvas.canvas.addEventListener("litegraph:set-graph", showLines);
    api.addEventListener("execution_start", begin);
    api.addEventListener("execution_success", () => end((text) => NOT_RUN + text));
    api.addEventListener("execution_interrupted", () => end(() => "interrupted before it ran"));
    api.addEventListener("execution_error", () => end(() => "an error before it ran"));
    api.addEventListener("progress_text", ({ detail }) => {
      const node = detail?.text && !detail.isRepeated && nodeAt(detail.nodeId);
      if (node?.type?.startsWith(OURS) || node?.isSubgraphNode?.()) setLine(node, detail.text);
    });
  },
});
