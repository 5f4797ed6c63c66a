// The interactive part of the report: pick a query, one of its results, then a word or a region.
// Every text is set through textContent: captions are data, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const lists = { ...data.queries, foils: data.foils };
  const DIRECTIONS = { t2i: "Text → image", i2t: "Image → text", ...(data.foils.length ? { foils: "One word changed" } : {}) };
  const RANKS = {
    all: ["All", () => true],
    first: ["Rank 1", (q) => q.rank === 1],
    near: ["2–10", (q) => q.rank > 1 && q.rank <= 10],
    far: ["Above 10", (q) => q.rank > 10],
    worst: ["Worst", (q) => q.worst],
  };
  const KINDS = {
    all: ["All", () => true],
    lost: ["Foil wins", (q) => !q.won],
    ...Object.fromEntries([...new Set(data.foils.map((q) => q.kind))].map((kind) => [kind, [kind, (q) => q.kind === kind]])),
  };
  const state = { direction: "t2i", query: 0, result: 0, word: null, region: null, filter: "all", text: "" };

  const picture = (id, attributes = {}) => pictureOf(data.images[id], attributes);
  const queries = () => lists[state.direction];
  const filters = () => (state.direction === "foils" ? KINDS : RANKS);

  function shownQueries() {
    // Letters with accents are composed (NFC): captions hold them as they were written.
    const wanted = state.text.trim().normalize().toLowerCase();
    return queries().filter((q) => filters()[state.filter][1](q) && (!wanted || q.search.normalize().includes(wanted)));
  }

  // ---- the controls -------------------------------------------------------------------------------------------
  function drawControls() {
    byId("directions").replaceChildren(
      ...Object.entries(DIRECTIONS).map(([key, name]) =>
        make("button", { type: "button", "aria-pressed": String(key === state.direction), "data-direction": key,
          onclick: () => select({ direction: key, query: 0, filter: "all" }) }, name)));
    byId("filters").replaceChildren(
      ...Object.entries(filters()).map(([key, [name, keep]]) => {
        const count = queries().filter(keep).length;
        return make("button", { type: "button", "aria-pressed": String(key === state.filter), "data-filter": key,
          disabled: count === 0, onclick: () => filter({ filter: key }) }, `${name} (${count})`);
      }));
  }

  function filter(change) {
    Object.assign(state, change);
    const shown = shownQueries();
    if (shown.length && !shown.includes(queries()[state.query])) return select({ query: queries().indexOf(shown[0]) });
    drawControls();
    drawQueries();
  }

  function drawQueries() {
    const shown = shownQueries();
    byId("filters").setAttribute("aria-label", state.direction === "foils" ? "Kind of foil" : "Rank of the right answer");
    byId("shown").textContent = `${shown.length} of ${queries().length} ${state.direction === "foils" ? "foils" : "queries"}`;
    byId("queries").replaceChildren(
      ...shown.map((query) => {
        const index = queries().indexOf(query);
        return make("li", {},
          make("button", { type: "button", class: "query", "data-query": query.key,
            "aria-current": index === state.query ? "true" : null, onclick: () => select({ query: index }, true) },
          query.image ? picture(query.image) : null,
          make("span", {}, make("span", { class: "words" }, ...inList(query)), rankChip(query),
            query.worst ? " " : null, query.worst ? make("small", {}, "worst") : null)));
      }),
      ...(shown.length ? [] : [make("li", { class: "nothing" }, "No query fits.")]));
    // Only the list itself may scroll; scrollIntoView would move the page too.
    const list = byId("queries"), current = list.querySelector("[aria-current]");
    if (current) {
      const at = current.getBoundingClientRect(), box = list.getBoundingClientRect();
      if (at.top < box.top || at.bottom > box.bottom) list.scrollTop += at.top - box.top - 4;
      if (at.left < box.left || at.right > box.right) list.scrollLeft += at.left - box.left - 4;
    }
  }

  // ---- the selected query -------------------------------------------------------------------------------------
  /** What pair_view.js draws: a result of the selected query. */
  const viewOf = (query, pair) => ({ pair, image: data.images[pair.image], word: state.word, region: state.region, toggle,
    marks: (index) => marksOf(query, pair, index) });

  function drawResults(query) {
    const pictures = query.image === null;
    return make("div", { class: `results ${pictures ? "pictures" : "captions"}` },
      make("p", { class: "label" }, isFoil(query) ? "Caption and foil" : "What the model ranks first"),
      make("ol", { onkeydown: walkWithArrows }, ...query.results.map((pair, index) => {
        const place = isFoil(query) && pair.right ? null : make("span", { class: "at" }, isFoil(query) ? "foil" : `${pair.at}.`);
        const tick = pair.right ? make("span", { class: "tick" }, isFoil(query) ? "✓ caption" : "✓ right") : null;
        const score = make("span", { class: "score" }, scoreText(pair.score));
        const attributes = { type: "button", class: `result${pair.right ? " right" : ""}`, "data-result": index,
          "aria-pressed": String(state.result === index), onclick: () => choose({ result: index }) };
        return make("li", { class: pair.beyond ? "beyond" : null },
          pictures
            ? make("button", attributes, picture(pair.image), make("span", { class: "meta" }, place, tick, score))
            : make("button", attributes, make("span", { class: "meta" }, place, tick, score), make("span", { class: "words" }, own(pair.text))));
      })));
  }

  function drawDetail() {
    const query = queries()[state.query];
    const pair = query.results[state.result];
    const view = viewOf(query, pair);
    byId("detail").replaceChildren(
      make("div", { class: "detail-head" },
        make("h3", {}, ...title(query)), rankChip(query),
        make("span", { class: "id" }, query.image && !isFoil(query) ? `image ${query.id}` : `caption ${query.id}`)),
      make("div", { class: "pair" },
        make("div", {}, drawStage(view), drawRegions(view)),
        make("div", {},
          make("div", { class: "caption" },
            make("p", { class: "label" }, pair.right ? "Caption of the pair, ✓ right" : isFoil(query) ? "Foil" : "Caption of the pair, not a match"),
            drawWords(view), make("p", { class: "say", role: "status" }, sentenceOf(view)),
            isFoil(query) && !pair.right ? make("p", { class: "verdict" }, verdict(query)) : null),
          drawResults(query))));
  }

  // ---- moving about -------------------------------------------------------------------------------------------
  const hash = () => `#${queries()[state.query].key}` +
    (state.result !== opening(queries()[state.query]).result ? `/${state.result}` : "") +
    (state.word === null ? "" : `/w${state.word}`) + (state.region === null ? "" : `/r${state.region}`);

  /** Draw the selected query anew; focus stays on the control that had it. */
  function choose(change) {
    if ("result" in change) Object.assign(state, { word: null, region: null });
    Object.assign(state, change);
    const held = document.activeElement?.closest("#detail") ? document.activeElement : null;
    const name = held && ["word", "result", "region"].find((key) => key in held.dataset);
    const again = name && `button[data-${name}="${held.dataset[name]}"]`;
    drawDetail();
    if (again) byId("detail").querySelector(again)?.focus({ preventScroll: true });
    history.replaceState(null, "", hash());
  }

  function toggle(what, index) {
    choose({ word: null, region: null, [what]: state[what] === index ? null : index });
  }

  function select(change, reveal = false) {
    const held = document.activeElement?.dataset ?? {};
    const again = held.query ? `[data-query="${held.query}"]` : held.direction ? `[data-direction="${held.direction}"]`
      : held.filter ? `[data-filter="${held.filter}"]` : null;
    Object.assign(state, change);
    const open = { ...opening(queries()[state.query]), ...("result" in change ? { result: change.result, word: null } : {}) };
    drawControls();
    drawQueries();
    choose(open);
    if (again) document.querySelector(again)?.focus({ preventScroll: true });
    if (reveal && window.innerWidth <= 860) byId("detail").scrollIntoView({ block: "nearest" });
  }

  /** `#t2i-3/1/w4`: the fourth query, its second result, its fifth word. False where the address names no query. */
  function follow(reveal) {
    const [key, ...rest] = location.hash.slice(1).split("/");
    const direction = key.split("-")[0];
    if (!(direction in DIRECTIONS)) return false;
    const index = lists[direction].findIndex((query) => query.key === key);
    if (index < 0) return false;
    const number = (pattern) => rest.map((part) => part.match(pattern)).filter(Boolean).map((match) => Number(match[1]))[0];
    const results = lists[direction][index].results;
    const result = Math.min(number(/^(\d+)$/) ?? opening(lists[direction][index]).result, results.length - 1);
    const word = number(/^w(\d+)$/), region = number(/^r(\d+)$/);
    select({ direction, query: index, filter: "all", text: "", ...(rest.length ? { result } : {}) });
    byId("search").value = "";
    if (word < results[result].words.length) choose({ word });
    else if (region < data.images[results[result].image].boxes.length) choose({ region });
    if (reveal) byId("explore").scrollIntoView();
    return true;
  }

  for (const image of document.querySelectorAll("img[data-image]")) image.src = data.images[image.dataset.image].uri;
  for (const part of document.querySelectorAll(".controls, .explorer")) part.hidden = false;
  byId("search").addEventListener("input", (event) => filter({ text: event.target.value }));
  let opened = false;
  function open() {
    opened = false;
    if (follow(true)) byId("detail").focus({ preventScroll: true });
  }
  for (const link of document.querySelectorAll("a.failure")) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      if (link.hash === location.hash) open(); // no change of the address follows
      else opened = true;
    });
  }
  // Where no link was pressed it is a step back, whose place the browser knows.
  window.addEventListener("hashchange", () => (opened ? open() : follow(false)));
  if (!follow(true)) {
    const address = location.hash;
    select({ direction: data.queries.t2i.length ? "t2i" : "i2t", query: 0 });
    history.replaceState(null, "", address || location.pathname + location.search);
  }
  document.documentElement.dataset.ready = "true";
})();
