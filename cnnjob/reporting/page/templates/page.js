// Sections of runs: what a browser with scripts treats as text is inserted when a section is opened or printed.
const runSections = [...document.querySelectorAll("details.run")];
const insert = (section) => {
  const stored = section.querySelector(":scope > .content > noscript");
  if (!stored) return;
  const content = stored.parentElement;
  content.innerHTML = stored.textContent;
  content.dispatchEvent(new Event("inserted", { bubbles: true }));
};
for (const section of runSections) {
  if (section.open) insert(section);
  section.addEventListener("toggle", () => section.open && insert(section));
}
const reveal = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let each = target; each; each = each.parentElement) {
    each.hidden = false;
    if (each.matches("details.run")) insert(each);
    if (each.matches("details")) each.open = true;
  }
  (target.matches("details.run > .content") ? target.parentElement : target).scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();
// A second click on the same link does not change the hash.
addEventListener("click", (event) => event.target.closest?.("a[href^='#']")?.hash === location.hash && reveal());

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details.run:not([open]), details.fold:not([open])")];
  for (const section of folded) {
    if (section.matches(".run")) insert(section);
    section.open = true;
  }
});
addEventListener("afterprint", () => folded.forEach((section) => (section.open = false)));

// Groups in the results table unfold.
const groups = new Map();
for (const table of document.querySelectorAll("table.results")) {
  for (const body of table.tBodies) {
    const runs = body.querySelectorAll(":scope > .run-row");
    if (!runs.length) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "unfold";
    const name = body.rows[0].cells[0].firstElementChild;
    button.setAttribute("aria-label", `Runs of ${name.textContent.trim()}`);
    const show = (shown) => {
      button.setAttribute("aria-expanded", shown);
      for (const row of runs) row.hidden = !shown;
    };
    button.addEventListener("click", () => show(button.getAttribute("aria-expanded") !== "true"));
    name.prepend(button);
    groups.set(body, { show, initially: table.matches(".unfolded") });
    show(table.matches(".unfolded"));
  }
}

// The filter shows the runs whose row, list item or section contains all words.
const filter = document.querySelector(".filter");
if (filter) {
  const input = filter.querySelector("input"), output = filter.querySelector("output");
  const texts = new Map();
  const text = (element) => {
    if (!texts.has(element)) texts.set(element, element.textContent.toLowerCase());
    return texts.get(element);
  };
  // A number matches from its first digit, so that "seed 1" does not find every name that contains a 1.
  const matches = (element, words) => words.every((word) => word.test(text(element)));
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean).map((word) =>
      new RegExp((/^[\d.]+$/.test(word) ? "(?<![a-z0-9.])" : "") + word.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")));
    const found = new Set();
    for (const section of runSections) {
      const shown = matches(section.querySelector("summary"), words);
      section.hidden = !shown;
      if (shown) found.add(section.dataset.run);
    }
    for (const fold of document.querySelectorAll("details.fold, details.list:has(li[data-run])")) {
      const members = fold.querySelectorAll("[data-run]");
      for (const each of members) each.hidden = !found.has(each.dataset.run);
      fold.hidden = ![...members].some((each) => !each.hidden);
    }
    for (const each of document.querySelectorAll("nav [data-run]")) each.hidden = !found.has(each.dataset.run);
    for (const body of document.querySelectorAll("table.results > tbody")) {
      const rows = [...body.rows];
      const shown = rows.map((row) => {
        const list = row.querySelector("details.list");
        return row.dataset.run ? found.has(row.dataset.run) : list ? !list.hidden : false;
      });
      const any = shown.some(Boolean);
      const group = groups.get(body);
      if (group) {
        body.hidden = !any;
        group.show(words.length > 0 || group.initially);
        if (words.length) rows.forEach((row, index) => index && (row.hidden = !shown[index]));
      } else rows.forEach((row, index) => (row.hidden = !shown[index]));
    }
    output.textContent = words.length ? `${found.size} of ${runSections.length} runs` : "";
  };
  filter.hidden = false;
  filter.addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("input", apply);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.target.matches("input, textarea")) {
      event.preventDefault();
      input.focus();
    } else if (event.key === "Escape" && document.activeElement === input) {
      input.value = "";
      apply();
    }
  });
  if (input.value) apply();
}

// Parallel coordinates: the group at the pointer, or chosen with the arrow keys from the best one on, shows its values.
for (const frame of document.querySelectorAll(".parallel")) {
  const lines = [...frame.querySelectorAll(".group-line")].reverse();
  const output = frame.parentElement.querySelector(".values");
  let chosen = -1;
  const choose = (index) => {
    lines[chosen]?.classList.remove("chosen");
    chosen = index;
    lines[chosen]?.classList.add("chosen");
    output.textContent = lines[chosen]?.textContent ?? "";
  };
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") choose(-1);
    if (!step) return;
    event.preventDefault();
    choose(Math.min(Math.max(chosen + step, 0), lines.length - 1));
  });
  frame.addEventListener("pointerover", (event) => choose(lines.indexOf(event.target.closest(".group-line"))));
  for (const name of ["pointerleave", "blur"]) frame.addEventListener(name, () => choose(-1));
}

// The contents mark the section on screen.
const links = new Map([...document.querySelectorAll(".contents > ul > li > a")].map((link) => [link.hash.slice(1), link]));
const headings = [...links.keys()].map((id) => document.getElementById(id));
const mark = () => {
  const current = headings.findLast((heading) => heading.getBoundingClientRect().top < innerHeight / 3) ?? headings[0];
  for (const [id, link] of links) id === current.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
};
addEventListener("scroll", mark, { passive: true });
mark();
