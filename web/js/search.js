// The page ranks a node by its names alone: one that is found by a search alias comes after all
// that have the word, or one like it, in theirs. Here an alias of our main node counts as a name
// that begins with the word, of a node that is used now and then: those used more stay first.

import { app } from "../../../scripts/app.js";

const NODE = "RectifiedSpaAttn";

// Of the page's kinds of matches, which it compares first.
const NAME_BEGINS = 1;
const NOT_IN_NAME = 9;
// Of its list of how often nodes are used: behind the eight of Wan that are used most.
const USES = 12;
// An alias that begins with the word stays below, one that is only like it above.
const IS_LIKE = 0.3;

function rank([kind, place, length, difference]) {
  const isAlias = kind === NOT_IN_NAME && difference < IS_LIKE;
  return [...(isAlias ? [NAME_BEGINS, -USES] : [kind, 0]), place, length, difference];
}

app.registerExtension({
  name: "rectified_spaattn.search",
  beforeRegisterVueAppNodeDefs(definitions) {
    const ours = definitions.find((each) => each.name === NODE);
    if (ours) ours.postProcessSearchScores = rank;
  },
});
