"use strict";
// One picture: where each word of the sentence looks, drawn by pair_view.js, and what is like it.
(() => {
  const byId = (id) => document.getElementById(id);

  function draw(data) {
    const picked = { word: null, region: null };
    const pointed = { word: null };
    const marks = (index) => (data.against.includes(index) ? ["against"] : []);
    const named = data.image.labels.some((label, index) => label !== `region ${index + 1}`);
    const viewOf = (state) => ({ pair: data.pair, image: data.image, ...state, toggle, marks, undimmed: true });
    /** What a pointer or the focus is on goes before what was picked. */
    const current = () => viewOf(pointed.word === null ? picked : { word: pointed.word, region: null });

    function drawPicture() {
      const view = current(), held = document.activeElement?.closest("#regions button")?.dataset.region;
      byId("shown").replaceChildren(drawStage(view));
      byId("say").textContent = sentenceOf(view);
      if (named) byId("regions").replaceChildren(drawRegions(view));
      if (held) (byId("regions").querySelector(`[data-region="${held}"]`) ?? byId("regions").querySelector("button"))?.focus({ preventScroll: true });
      for (const row of document.querySelectorAll(".effects [data-word]")) {
        row.classList.toggle("lit", Number(row.dataset.word) === view.word);
      }
    }

    function drawAll() {
      const held = document.activeElement?.dataset?.word, inside = document.activeElement?.closest("#words");
      const row = drawWords(viewOf(picked));
      for (const word of row.querySelectorAll("[data-word]")) {
        const index = Number(word.dataset.word);
        word.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && point(index));
        word.addEventListener("pointerleave", () => point(null));
        word.addEventListener("focus", () => word.matches(":focus-visible") && point(index));
        // Once the focus is where it goes: drawing anew takes away what it may be on its way to.
        word.addEventListener("blur", () => setTimeout(() => pointed.word === index && point(null)));
      }
      byId("words").replaceChildren(row);
      if (inside && held) row.querySelector(`[data-word="${held}"]`).focus({ preventScroll: true });
      drawPicture();
    }

    function point(word) {
      if (pointed.word === word) return;
      pointed.word = word;
      drawPicture();
    }

    function toggle(what, index) {
      Object.assign(picked, { word: null, region: null, [what]: picked[what] === index ? null : index });
      pointed.word = null;
      drawAll();
      const at = picked.word !== null ? `#w${picked.word}` : picked.region !== null ? `#r${picked.region}` : "";
      history.replaceState(null, "", location.pathname + location.search + at);
    }

    for (const row of document.querySelectorAll(".effects tr[data-word]")) {
      row.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && point(Number(row.dataset.word)));
      row.addEventListener("pointerleave", () => point(null));
      row.addEventListener("click", () => toggle("word", Number(row.dataset.word)));
    }
    const [, what, index] = location.hash.match(/^#([wr])(\d+)$/) ?? [];
    if (what === "w" && index < data.pair.words.length) picked.word = Number(index);
    if (what === "r" && index < data.image.boxes.length) picked.region = Number(index);
    drawAll();
  }

  /** Whether one step back is the list that this page was opened from; never in a tab of its own. */
  function fromList() {
    const at = window.navigation?.currentEntry?.index ?? 0;
    const before = at > 0 && navigation.entries()[at - 1]?.url;
    if (!before || new URL(before).pathname !== "/" || /[?&]like=|#dropped$/.test(before)) return false;
    const sentence = (address) => new URL(address).searchParams.get("q") ?? "";
    return sentence(before) === sentence(location.href);
  }

  /** What a plain click does in place of a link. */
  const onPlainClick = (link, act) => link?.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    act(link.href);
  });
  // The list as the browser left it, and without a way forward and back again; the link leads to the same place anew.
  onPlainClick(byId("back"), (address) => (fromList() ? history.back() : location.assign(address)));
  // One after the other is one step of the browser's: back leads to the list.
  for (const name of ["before", "after"]) onPlainClick(byId(name), (address) => location.replace(address));

  // A file that misses the search page must not take this one's place.
  for (const name of ["dragover", "drop"]) {
    addEventListener(name, (event) => [...(event.dataTransfer?.types ?? [])].includes("Files") && event.preventDefault());
  }

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && document.activeElement !== byId("q")) return byId("back").click();
    if (document.activeElement?.closest("input, [role=group], #regions")) return;
    if (event.key === "/") {
      event.preventDefault();
      byId("q").focus();
      byId("q").select();
    }
    if (event.key === "ArrowLeft") byId("before")?.click();
    if (event.key === "ArrowRight") byId("after")?.click();
  });

  async function showLike() {
    const answer = await fetch(byId("like").dataset.from);
    if (answer.ok) byId("like").innerHTML = await answer.text(); // the server's own, in which every text is escaped
    else if (answer.status !== 404) byId("like").replaceChildren(); // nothing here can look at pictures
  }

  const data = byId("pair");
  if (data) draw(JSON.parse(data.textContent));
  showLike().catch(() => {}); // the link stays
  document.documentElement.dataset.ready = "true";
})();
