// What the page says of a query, a result or a word, before page.js puts it anywhere. A foil is shown like a query whose
// results are the caption and the foil.
const isFoil = (query) => query.kind !== undefined;
/** The result that a query opens with: of a foil the foil itself, with the word held responsible. */
const opening = (query) => ({ result: isFoil(query) ? 1 : 0, word: isFoil(query) ? query.byGate ?? query.byScore : null });

const rankKind = (rank) => (rank === 1 ? "hit" : rank <= 10 ? "near" : "miss");
const rankChip = (query) => isFoil(query)
  ? make("span", { class: `rank ${query.won ? "hit" : "miss"}` }, query.won ? "✓ caption wins" : "foil wins")
  : make("span", { class: `rank ${rankKind(query.rank)}` }, query.rank === 1 ? "✓ rank 1" : `rank ${query.rank}`);

/** A caption in its own direction, from the right in Arabic and Hebrew, whatever stands around it. */
const own = (...parts) => make("bdi", { lang: "" }, ...parts);

/** What the list says of a query: for a foil, the words about the changed one, which stands after the caption's own. */
function inList(query) {
  if (!isFoil(query)) return [query.image ? "first: " : "", own(query.image ? query.results[0].text : query.text)];
  const words = query.results[1].words, at = query.position;
  return [own(`${at > 4 ? "… " : ""}${words.slice(Math.max(0, at - 4), at).join(" ")} `, make("del", {}, query.results[0].words[at]), " ",
    make("ins", {}, words[at]), ` ${words.slice(at + 1).join(" ")}`)];
}

/** What is special about a word of a foil: changed, guilty (held responsible), or, in the caption, replaced. */
function marksOf(query, pair, index) {
  if (!isFoil(query)) return [];
  if (pair.right) return index === query.position ? ["replaced"] : [];
  return [index === query.position && "changed", index === (query.byGate ?? query.byScore) && "guilty"].filter(Boolean);
}

/** Which words of a foil are held responsible, and how that was found. */
function verdict(query) {
  const word = (at) => `“${query.results[1].words[at]}”${at === query.position ? ", the changed word" : ""}`;
  return `Held responsible${query.byGate === null ? "" : ` by gate: ${word(query.byGate)};`} by score: ${word(query.byScore)}.`;
}

function title(query) {
  const at = query.position;
  if (isFoil(query)) return ["“", own(query.results[1].words[at]), "” for “", own(query.results[0].words[at]), `”: ${query.kind}`];
  return query.image ? ["Which captions tell of this picture?"] : [own(`“${query.text}”`)];
}
