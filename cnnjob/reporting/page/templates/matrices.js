// Two confusion matrices side by side, with their difference: of runs, or of groups as sums over their runs.
const MAX_TABLE_CLASSES = 20, MAX_DIFFERENCES = 5;
const BLUE = [0, 114, 178], ORANGE = [213, 94, 0];

const addMatrices = (section) => {
  const { classes, runs, counts, groups, chosen } = JSON.parse(section.querySelector("script").textContent);
  const K = classes.length;
  const matrix = (kind, index) => {
    const sum = new Array(K * K).fill(0);
    for (const run of kind === "groups" ? groups[index][1] : [index]) {
      counts[run].split(",").forEach((count, cell) => (sum[cell] += Number(count)));
    }
    const ofClass = classes.map((_, row) => sum.slice(row * K, row * K + K).reduce((a, b) => a + b, 0));
    return { counts: sum, shares: sum.map((count, cell) => count / Math.max(ofClass[Math.floor(cell / K)], 1)) };
  };
  const percent = (share) => (100 * share).toFixed(1);
  const points = (share) => (Math.abs(share) < 5e-4 ? "" : `${share > 0 ? "+" : "−"}${percent(Math.abs(share))}`);

  const table = (title, texts, shares) => {
    const head = htmlElement("tr", {}, htmlElement("td", { colSpan: 2 }), ...classes.map((name) => htmlElement("th", { scope: "col" }, name)));
    const across = htmlElement("th", { className: "axis-title", colSpan: K, scope: "colgroup" }, "predicted class");
    const body = classes.map((name, row) => {
      const side = htmlElement("th", { className: "axis-title side", rowSpan: K, scope: "rowgroup" }, htmlElement("span", {}, "true class"));
      const cells = classes.map((_, column) => {
        const cell = row * K + column, element = htmlElement("td", {}, texts[cell]);
        element.style.background = `rgba(${(shares[cell] < 0 ? ORANGE : BLUE).join()}, ${0.55 * Math.sqrt(Math.min(Math.abs(shares[cell]), 1))})`;
        return element;
      });
      return htmlElement("tr", {}, ...(row ? [] : [side]), htmlElement("th", { scope: "row" }, name), ...cells);
    });
    const made = htmlElement("table", { className: "matrix" }, htmlElement("caption", {}, title));
    made.append(htmlElement("thead", {}, htmlElement("tr", {}, htmlElement("td", { colSpan: 2 }), across), head), htmlElement("tbody", {}, ...body));
    const frame = htmlElement("div", { className: "scroll", tabIndex: 0 }, made);
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", title);
    return frame;
  };

  const picture = (title, shares, describe) => {
    const canvas = htmlElement("canvas", { width: K, height: K, className: "picture" });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${title}: ${K} true classes from top to bottom, predicted classes from left to right`);
    const context = canvas.getContext("2d"), image = context.createImageData(K, K);
    shares.forEach((share, cell) => {
      const weight = Math.sqrt(Math.min(Math.abs(share), 1)), colour = share < 0 ? ORANGE : BLUE;
      colour.forEach((value, channel) => (image.data[4 * cell + channel] = 255 + weight * (value - 255)));
      image.data[4 * cell + 3] = 255;
    });
    context.putImageData(image, 0, 0);
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * K), row = Math.floor(((event.clientY - box.top) / box.height) * K);
      if (row >= 0 && row < K && column >= 0 && column < K) cellText.textContent = describe(row * K + column);
    });
    const frame = htmlElement("div", { className: "framed" }, htmlElement("span", { className: "axis-title" }, "predicted class"));
    frame.append(htmlElement("span", { className: "axis-title side" }, "true class"), canvas);
    return htmlElement("figure", {}, htmlElement("figcaption", {}, title), frame);
  };

  const cellText = htmlElement("p", { className: "soft" }, K > MAX_TABLE_CLASSES ? "Point at a cell to read it." : "");
  const result = htmlElement("div", {});
  const selects = chosen.map(([kind, index], position) => {
    const select = htmlElement("select", {});
    for (const [key, title, names] of [["groups", "Groups, sums over their runs", groups.map(([label]) => label)], ["runs", "Runs", runs]]) {
      if (names.length) select.append(htmlElement("optgroup", { label: title }, ...names.map((name, n) => new Option(name, `${key} ${n}`))));
    }
    select.value = `${kind} ${index}`;
    select.addEventListener("change", () => draw());
    return htmlElement("label", {}, ["First ", "Second "][position], select);
  });

  const draw = () => {
    const [first, second] = selects.map((label) => label.querySelector("select"));
    const [a, b] = [first, second].map((select) => matrix(...select.value.split(" ")));
    const [nameA, nameB] = [first, second].map((select) => select.selectedOptions[0].text);
    const difference = a.shares.map((share, cell) => share - b.shares[cell]);
    const pair = (cell) => [classes[Math.floor(cell / K)], classes[cell % K]];
    const describe = (cell) => {
      const [actual, predicted] = pair(cell);
      const what = actual === predicted ? `${actual} recognised` : `${actual} predicted as ${predicted}`;
      return `${what}: ${a.counts[cell]} (${percent(a.shares[cell])} %) and ${b.counts[cell]} (${percent(b.shares[cell])} %), ${points(difference[cell]) || "0.0"} points`;
    };
    const titles = [nameA, nameB, "Difference, first minus second, in percentage points of the true class"];
    const panels = K <= MAX_TABLE_CLASSES
      ? [table(titles[0], a.counts.map((count) => count || ""), a.shares), table(titles[1], b.counts.map((count) => count || ""), b.shares),
        table(titles[2], difference.map(points), difference)]
      : [a.shares, b.shares, difference].map((shares, n) => picture(titles[n], shares, describe));
    const largest = [...difference.keys()].filter((cell) => points(difference[cell]));
    largest.sort((one, other) => Math.abs(difference[other]) - Math.abs(difference[one]));
    const list = htmlElement("ul", {}, ...largest.slice(0, MAX_DIFFERENCES).map((cell) => htmlElement("li", {}, describe(cell))));
    const heading = htmlElement("p", {}, largest.length ? "Largest differences, first and second:" : "The two matrices are the same.");
    result.replaceChildren(htmlElement("div", { className: "matrices" }, ...panels, htmlElement("div", {}, heading, list, cellText)));
  };
  section.append(htmlElement("p", { className: "choices" }, ...selects), result);
  draw();
};
document.querySelectorAll(".comparable").forEach(addMatrices);
