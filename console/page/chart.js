// Charts of the last minutes, in SVG. A series is [[time, value or null], …]; times are milliseconds.

const HEIGHT = 180;
const EDGE = { left: 48, right: 8, top: 16, bottom: 20 };
const GAP = 3000; // points further apart are not joined
const NAMESPACE = "http://www.w3.org/2000/svg";

export class Chart {
  // `series`: [{ name, colour, values() }]; `kind`: "line", "stack" (areas) or "bars" (one a second).
  constructor({ title, kind, series, limits = () => [], format = String, least = 5 }) {
    Object.assign(this, { title, kind, series, limits, format, least });
    this.figure = document.createElement("figure");
    this.figure.className = "chart";
    const caption = this.figure.appendChild(document.createElement("figcaption"));
    caption.appendChild(document.createElement("h3")).textContent = title;
    const legend = caption.appendChild(document.createElement("ul"));
    legend.className = "legend";
    this.shown = series.map((each) => legendOf(legend, each));
    this.svg = this.figure.appendChild(document.createElementNS(NAMESPACE, "svg"));
    this.svg.setAttribute("role", "img");
  }

  draw({ now, seconds, cursor, activities }) {
    this.width = this.svg.clientWidth || 400;
    this.begin = now - seconds * 1000;
    this.now = now;
    const drawn = this.series.map((each) => each.values().filter(([time]) => time >= this.begin && time <= now));
    const limits = this.limits();
    this.top = ceiling(Math.max(this.least, this.highest(drawn), ...limits.map((limit) => limit.value)));
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.svg.replaceChildren(
      ...activities.flatMap((each) => this.shade(each)),
      ...this.grid(seconds),
      ...this.curves(drawn),
      ...limits.flatMap((limit) => this.limit(limit)),
      ...(cursor ? [this.line("cursor", `M${this.x(cursor)} ${EDGE.top}V${HEIGHT - EDGE.bottom}`)] : []),
    );
    this.tell(drawn, cursor ?? now);
  }

  highest(drawn) {
    if (this.kind === "line") return Math.max(0, ...drawn.flat().map(([, value]) => value ?? 0));
    const sums = new Map();
    for (const [time, value] of drawn.flat()) sums.set(time, (sums.get(time) ?? 0) + (value ?? 0));
    return Math.max(0, ...sums.values());
  }

  x(time) {
    const share = (time - this.begin) / (this.now - this.begin);
    return round(EDGE.left + share * (this.width - EDGE.left - EDGE.right));
  }

  y(value) {
    return round(HEIGHT - EDGE.bottom - (value / this.top) * (HEIGHT - EDGE.top - EDGE.bottom));
  }

  timeAt(x) {
    const share = (x - EDGE.left) / (this.width - EDGE.left - EDGE.right);
    return this.begin + Math.min(1, Math.max(0, share)) * (this.now - this.begin);
  }

  line(classes, d) {
    return element("path", { class: classes, d });
  }

  grid(seconds) {
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      const y = this.y(share * this.top);
      parts.push(this.line("grid", `M${EDGE.left} ${y}H${this.width - EDGE.right}`));
      parts.push(label(EDGE.left - 6, y + 4, "end", this.format(share * this.top)));
    }
    const step = seconds <= 60 ? 15 : seconds <= 120 ? 30 : 60;
    for (let back = 0; back <= seconds; back += step) {
      const anchor = back === 0 ? "end" : back === seconds ? "start" : "middle";
      parts.push(label(this.x(this.now - back * 1000), HEIGHT - 5, anchor, back === 0 ? "now" : `−${back} s`));
    }
    return parts;
  }

  limit({ name, value }) {
    const y = this.y(value);
    return [
      this.line("limit", `M${EDGE.left} ${y}H${this.width - EDGE.right}`),
      label(EDGE.left + 4, y - 4, "start", `${name} ${value}`),
    ];
  }

  shade({ kind, began, ended }) {
    const end = Math.min(ended ?? this.now, this.now);
    if (end < this.begin) return [];
    const x = this.x(Math.max(began, this.begin));
    const width = Math.max(3, this.x(end) - x);
    return [element("rect", { class: `shade-${kind}`, x, y: EDGE.top, width, height: HEIGHT - EDGE.top - EDGE.bottom })];
  }

  curves(drawn) {
    if (this.kind === "line") return drawn.map((points, i) => this.line(`curve ${this.series[i].colour}`, this.path(points)));
    const below = new Map();
    const parts = drawn.map((points, i) => {
      const stacked = points.map(([time, value]) => {
        const from = below.get(time) ?? 0;
        below.set(time, from + (value ?? 0));
        return [time, value === null ? null : from, from + (value ?? 0)];
      });
      const d = this.kind === "bars" ? this.bars(stacked) : this.area(stacked);
      return this.line(`area ${this.series[i].colour}`, d);
    });
    return parts;
  }

  path(points) {
    return runs(points)
      .map((run) => {
        const [first, ...rest] = run.map(([time, value]) => `${this.x(time)} ${this.y(value)}`);
        return `M${first}${rest.length ? rest.map((point) => `L${point}`).join("") : "h0"}`;
      })
      .join("");
  }

  area(points) {
    return runs(points)
      .map((run) => {
        const upper = run.map(([time, , to]) => `${this.x(time)} ${this.y(to)}`);
        const lower = run.map(([time, from]) => `${this.x(time)} ${this.y(from)}`).reverse();
        return `M${[...upper, ...lower].join("L")}Z`;
      })
      .join("");
  }

  bars(points) {
    const width = Math.max(1, this.x(this.begin + 1000) - this.x(this.begin) - 0.6);
    return points
      .filter(([, from, to]) => to > from)
      .map(([time, from, to]) => `M${this.x(time)} ${this.y(from)}V${this.y(to)}h${round(width)}V${this.y(from)}Z`)
      .join("");
  }

  // Show the values at the cursor, or the latest ones, in the legend and in the picture's label.
  tell(drawn, time) {
    const said = drawn.map((points, i) => {
      const found = points.findLast((point) => point[0] <= time && time - point[0] < GAP);
      const value = found && found[1] !== null ? this.format(found[1]) : "–";
      this.shown[i].textContent = value;
      return `${this.series[i].name} ${value}`;
    });
    this.svg.setAttribute("aria-label", `${this.title}: ${said.join(", ")}`);
  }
}

function legendOf(list, { name, colour }) {
  const item = list.appendChild(document.createElement("li"));
  item.appendChild(document.createElement("i")).className = colour;
  item.append(`${name} `);
  return item.appendChild(document.createElement("b"));
}

// Split a series where values are missing.
function runs(points) {
  const found = [];
  let last = -Infinity;
  for (const point of points) {
    if (point[1] === null) { last = -Infinity; continue; }
    if (point[0] - last > GAP) found.push([]);
    found.at(-1).push(point);
    last = point[0];
  }
  return found;
}

function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10].map((each) => each * power).find((each) => each >= value * 1.04) ?? 10.5 * power;
}

function round(value) {
  return Math.round(value * 10) / 10;
}

function label(x, y, anchor, text) {
  const made = element("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

function element(name, attributes) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
