// Charts: the values at a point, smoothing, and linear or logarithmic axes. All numbers come from the paths themselves.
const AREA = { left: 60, right: 466, top: 10, bottom: 240, padding: 6 };
const MAX_READINGS = 12;
const svgElement = (name, attributes) => {
  const element = document.createElementNS(document.querySelector("svg").namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const htmlElement = (name, attributes, ...children) => {
  const element = Object.assign(document.createElement(name), attributes);
  element.append(...children);
  return element;
};
const numbersIn = (text) => text.split(" ").map(Number);

// The exponential moving average of TensorBoard: the weight of missing values before the first point is divided out.
const smoothed = (points, weight) => {
  let sum = 0, norm = 0;
  return points.map(([x, y]) => {
    sum = weight * sum + (1 - weight) * y;
    norm = weight * norm + 1 - weight;
    return [x, sum / norm];
  });
};

class LineChart {
  constructor(figure) {
    this.svg = figure.querySelector("svg");
    this.title = this.svg.querySelector("title").textContent;
    this.measure = this.svg.querySelector(".measure").textContent.split(",")[0];
    [this.first, this.last] = numbersIn(this.svg.dataset.x);
    this.isLog = "log" in this.svg.dataset;
    [this.low, this.high] = numbersIn(this.svg.dataset.y);
    this.scales = JSON.parse(this.svg.dataset.scales ?? "null");
    this.weight = 0;
    this.bands = [...this.svg.querySelectorAll(".band")].map((path) => {
      const points = this.read(path);
      return { path, upper: points.slice(0, points.length / 2), lower: points.slice(points.length / 2).reverse() };
    });
    this.lines = [...this.svg.querySelectorAll(".line")].map((path) => {
      const band = this.bands[path.dataset.band];
      const widths = new Map(band?.upper.map(([x, y]) => [x, y]));
      return { path, title: path.textContent, points: this.read(path), widths };
    });
    this.marks = [...this.svg.querySelectorAll(".best, .stop")].map((path) => {
      const [x, y] = numbersIn(path.getAttribute("transform").slice(10, -1));
      return { path, x, value: this.value(this.high - ((y - AREA.top) / 230) * (this.high - this.low)) };
    });
    this.stops = [...new Set(this.lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
    this.addReading(figure);
    if (this.scales) this.addSwitch(figure);
  }

  // From coordinates of paths to values and back.
  value(y) { return this.isLog ? 10 ** y : y; }
  coordinate(value) { return this.isLog ? Math.log10(Math.max(value, 1e-30)) : value; }
  read(path) {
    const pairs = path.getAttribute("d").replace(/h0|Z/g, "").split(/[ML]/).slice(1).map(numbersIn);
    return pairs.map(([x, y]) => [x, this.value(y)]);
  }
  across(x) { return AREA.left + ((x - this.first) / (this.last - this.first)) * (AREA.right - AREA.left); }
  up(value) {
    const share = (this.coordinate(value) - this.low) / (this.high - this.low);
    return AREA.bottom - Math.min(Math.max(share, -0.01), 1.01) * (AREA.bottom - AREA.top);
  }

  draw() {
    const joined = (points) => points.map(([x, y]) => `${x} ${this.coordinate(y)}`).join("L");
    for (const { path, points } of this.lines) {
      const end = points.length === 1 ? "h0" : "";
      path.setAttribute("d", `M${joined(smoothed(points, this.weight))}${end}`);
    }
    for (const { path, upper, lower } of this.bands) {
      const [above, below] = [upper, lower].map((points) => smoothed(points, this.weight));
      path.setAttribute("d", `M${joined(above)}L${joined(below.reverse())}Z`);
    }
    for (const { path, x, value } of this.marks) path.setAttribute("transform", `translate(${x} ${this.up(value)})`);
  }

  setScale(isLog) {
    const [low, high, ticks] = this.scales[isLog ? "log" : "linear"];
    Object.assign(this, { isLog, low, high });
    for (const area of this.svg.querySelectorAll(".area")) {
      const padding = area.matches(".padded") ? AREA.padding : 0, unit = (high - low) / (AREA.bottom - AREA.top);
      const [x, , width] = numbersIn(area.getAttribute("viewBox"));
      area.setAttribute("viewBox", `${x} ${-high - padding * unit} ${width} ${high - low + 2 * padding * unit}`);
    }
    this.svg.querySelector(".ticks").replaceChildren(...ticks.flatMap(([at, label]) => {
      const text = svgElement("text", { x: 54, y: at + 4, "text-anchor": "end" });
      text.append(label);
      return [svgElement("path", { class: "axis", d: `M60 ${at}H466` }), text];
    }));
    const measure = this.svg.querySelector(".measure");
    measure.textContent = measure.textContent.replace(/, logarithmic$/, "") + (isLog ? ", logarithmic" : "");
    this.draw();
  }

  addSwitch(figure) {
    const button = htmlElement("button", { type: "button", className: "switch" }, "Logarithmic axis");
    button.setAttribute("aria-label", `Logarithmic axis: ${this.title}`);
    button.setAttribute("aria-pressed", this.isLog);
    button.addEventListener("click", () => {
      this.setScale(!this.isLog);
      button.setAttribute("aria-pressed", this.isLog);
      this.hide();
    });
    figure.querySelector("figcaption").append(" ", button);
  }

  addReading(figure) {
    const svg = this.svg;
    this.guide = svgElement("g", { class: "guide" });
    this.reading = htmlElement("div", { className: "reading", hidden: true });
    svg.append(this.guide);
    figure.append(this.reading);
    for (const [key, value] of Object.entries({
      role: "slider", tabindex: 0, "aria-orientation": "horizontal", "aria-valuemin": 0,
      "aria-valuemax": this.stops.length - 1, "aria-valuenow": 0, "aria-valuetext": "use the arrow keys to read values",
    })) svg.setAttribute(key, value);
    const point = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * 480, y = ((event.clientY - box.top) / box.height) * 280;
      this.show(this.nearest(this.first + ((x - AREA.left) / (AREA.right - AREA.left)) * (this.last - this.first)), y);
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.hide());
    svg.addEventListener("focus", () => svg.matches(":focus-visible") && this.show(this.index ?? 0));
    svg.addEventListener("blur", () => this.hide());
    svg.addEventListener("keydown", (event) => {
      const last = this.stops.length - 1, index = this.index ?? 0;
      const page = Math.ceil(this.stops.length / 10);
      const moves = {
        ArrowLeft: index - 1, ArrowDown: index - 1, ArrowRight: index + 1, ArrowUp: index + 1,
        PageDown: index - page, PageUp: index + page, Home: 0, End: last,
      };
      if (event.key === "Escape") this.hide();
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.show(Math.min(Math.max(moves[event.key], 0), last));
    });
  }

  nearest(x) {
    const distance = (index) => Math.abs(this.stops[index] - x);
    return this.stops.reduce((best, _, index) => (distance(index) < distance(best) ? index : best), 0);
  }

  // The points of the lines near x; a line that has ended, or not begun, has none.
  pointsAt(x) {
    return this.lines.flatMap((line) => {
      const { points } = line, spacing = points.length > 1 ? (points.at(-1)[0] - points[0][0]) / (points.length - 1) : 0;
      const best = points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      return Math.abs(best[0] - x) <= spacing / 2 ? [{ line, x: best[0], value: best[1] }] : [];
    });
  }

  format(value) {
    if (this.measure === "accuracy") return value.toFixed(2);
    return this.measure === "loss" && value < 1000 ? value.toFixed(4) : String(Number(value.toPrecision(4)));
  }

  show(index, pointerY) {
    this.index = index;
    const x = this.stops[index], found = this.pointsAt(x);
    const isMean = ({ line }) => line.path.matches(".mean");
    if (found.length > MAX_READINGS) {
      const distance = (one) => (pointerY === undefined ? !isMean(one) : Math.abs(this.up(one.value) - pointerY));
      found.sort((a, b) => distance(a) - distance(b));
    }
    const shown = found.slice(0, MAX_READINGS).sort((a, b) => isMean(b) - isMean(a) || b.value - a.value);
    const more = found.length - shown.length, unit = this.measure === "accuracy" ? " %" : "";
    const label = [...this.svg.querySelectorAll(":scope > text")].find((text) => text.getAttribute("y") === "274").textContent;
    const heading = label === "epoch" ? `epoch ${x}` : `${Number(x.toPrecision(3))} ${label}`;
    const texts = shown.map(({ line, x: at, value }) => {
      const width = line.widths.has(at) ? ` ± ${this.format(line.widths.get(at) - value)}` : "";
      return [line, `${this.format(value)}${width}${unit}`];
    });
    const rows = texts.map(([line, text]) => {
      const swatch = htmlElement("span", { className: `swatch ${line.path.getAttribute("class")}` });
      return htmlElement("li", {}, swatch, htmlElement("span", { className: "title" }, line.title), htmlElement("b", {}, text));
    });
    this.reading.replaceChildren(htmlElement("p", {}, heading), htmlElement("ul", {}, ...rows));
    if (more) this.reading.append(htmlElement("p", { className: "soft" }, `and ${more} more lines`));
    const u = this.across(x);
    this.guide.replaceChildren(
      svgElement("path", { d: `M${u} 10V240` }),
      ...shown.map(({ line, x: at, value }) => {
        const colour = [...line.path.classList].filter((name) => /^k\d$/.test(name)).join(" ");
        return svgElement("circle", { class: `line ${colour}`, cx: this.across(at), cy: this.up(value), r: 3.5 });
      }),
    );
    this.reading.hidden = false;
    const width = this.svg.clientWidth || this.svg.getBoundingClientRect().width;
    const left = (u / 480) * width, isRight = u > 263;
    this.reading.style.left = isRight ? "" : `${left + 12}px`;
    this.reading.style.right = isRight ? `${this.svg.parentElement.clientWidth - left + 12}px` : "";
    this.svg.setAttribute("aria-valuenow", index);
    const spoken = texts.map(([line, text]) => `${line.title}: ${text}`);
    this.svg.setAttribute("aria-valuetext", [heading, ...spoken, ...(more ? [`and ${more} more lines`] : [])].join("; "));
  }

  hide() {
    this.reading.hidden = true;
    this.guide.replaceChildren();
  }
}

const addCharts = (root) => {
  for (const container of root.querySelectorAll(".charts:not(.live)")) {
    container.classList.add("live");
    const charts = [...container.querySelectorAll(".chart")].map((figure) => new LineChart(figure));
    const curves = charts.filter((chart) => chart.measure !== "learning rate" && chart.stops.length > 2);
    if (!curves.length) continue;
    const slider = htmlElement("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: 0 });
    const output = htmlElement("output", {}, "0");
    slider.addEventListener("input", () => {
      output.textContent = slider.value;
      for (const chart of curves) {
        chart.weight = Number(slider.value);
        chart.draw();
      }
    });
    container.before(htmlElement("p", { className: "smoothing" }, htmlElement("label", {}, "Smoothing ", slider), " ", output));
  }
};
addCharts(document);
addEventListener("inserted", (event) => addCharts(event.target));
