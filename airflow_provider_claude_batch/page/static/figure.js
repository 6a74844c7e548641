// Draws one chart of stacked columns with its legend, tooltip and table; what is in it comes from plots.js.
import { h, morph, s } from "./dom.js";

const [LEFT, RIGHT, BOTTOM, HEIGHT] = [52, 8, 22, 200];
const headroom = ({ marks }) => (marks?.length ? 38 : 12);

export function figure(plot, width, { asTable, flip, pointed }) {
  return h(
    "figure",
    { "data-chart": plot.name, "data-key": plot.name },
    h(
      "figcaption",
      null,
      h("h2", null, plot.title),
      h(
        "button",
        {
          type: "button",
          class: "button quiet",
          "aria-pressed": String(asTable),
          "data-action": "table",
          onclick: flip,
        },
        asTable ? "Show as chart" : "Show as table",
      ),
    ),
    asTable
      ? values(plot)
      : plot.columns.length && plot.max
        ? chart(plot, Math.max(240, width), pointed)
        : h("p", { class: "nothing" }, plot.nothing),
  );
}

function values({ title, table: { head, rows } }) {
  const headers = head.map((name, i) =>
    h("th", { scope: "col", class: i && !rows[0]?.[i].text ? "right" : null }, name),
  );
  const body = rows.map((cells) =>
    h(
      "tr",
      null,
      cells.map(({ value, shown, text }, i) =>
        h(i ? "td" : "th", { scope: i ? null : "row", "data-value": value, class: i && !text ? "right" : null }, shown),
      ),
    ),
  );
  return h(
    "div",
    { class: "values", tabindex: "0", role: "region", "aria-label": title },
    h(
      "table",
      null,
      h("caption", { class: "unseen" }, title),
      h("thead", null, h("tr", null, headers)),
      h("tbody", null, body),
    ),
  );
}

function chart(plot, width, pointed) {
  const band = (width - LEFT - RIGHT) / plot.columns.length;
  const bar = plot.tight ? band - 2 : Math.max(1, Math.min(28, band * 0.74));
  const TOP = headroom(plot);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / plot.max);
  const pointer = new Pointer(plot, band, width, pointed);
  return [
    h(
      "div",
      { class: "plot" },
      s(
        "svg",
        {
          role: "img",
          tabindex: "0",
          "aria-label": `${plot.summary} Use the arrow keys to hear each column.`,
          viewBox: `0 0 ${width} ${HEIGHT}`,
          width,
          height: HEIGHT,
          ...pointer.handlers,
        },
        plot.ticks.map(({ value, shown }) => [
          s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
          s("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, shown),
        ]),
        pointer.cursor(),
        plot.columns.map((column, i) => stack(column, LEFT + band * (i + 0.5) - bar / 2, bar, y)),
        labels(plot, band, width),
        lines(plot.marks ?? [], ({ at }) => LEFT + band * at, width),
      ),
      pointer.tip(),
    ),
    plot.legend.length > 0 &&
      h(
        "ul",
        { class: "legend" },
        plot.legend.map(({ tone, label }) => h("li", null, h("i", { class: `dot tone-${tone}` }), label)),
      ),
  ];
}

function stack({ parts }, x, width, y) {
  let sum = 0;
  return parts
    .filter(({ value }) => value > 0)
    .map(({ value, tone }) => {
      const [top, foot] = [y(sum + value), y(sum)];
      sum += value;
      return s("rect", {
        class: `tone tone-${tone}`,
        x,
        width,
        y: top,
        height: Math.max(0.5, foot - top - (foot - top > 3 ? 1 : 0)),
      });
    });
}

function labels({ columns, tight }, band, width) {
  const every = Math.ceil(54 / band);
  return columns.map(({ label }, i) => {
    const x = LEFT + band * (tight ? i + 1 : i + 0.5);
    if (i % every || !label || (!tight && x > width - 20)) return null;
    const last = x > width - 24;
    const at = { x: last ? width - 1 : x, y: HEIGHT - 6, "text-anchor": last ? "end" : "middle" };
    return s("text", { class: "tick", ...at }, label);
  });
}

/** Marks ascend; a later one stands a row higher, and each line begins below its own label: so none crosses another. */
function lines(marks, x, width) {
  const row = (i) => 13 + (marks.length - 1 - i) * 15;
  const line = (mark, i) =>
    s("line", { class: `mark mark-${i}`, x1: x(mark), x2: x(mark), y1: row(i) + 4, y2: HEIGHT - BOTTOM });
  const label = (mark, i) => {
    const [at, wide, next] = [x(mark), 7 * mark.label.length, marks[i + 1] ? x(marks[i + 1]) : width];
    const crowded = at + 5 + wide > next;
    const where =
      crowded && next - 5 >= wide
        ? { x: Math.max(at - 5, wide), "text-anchor": "end" }
        : { x: (crowded ? next : at) + 5 };
    return s("text", { class: "mark-label", y: row(i), ...where }, mark.label);
  };
  return [marks.map(line), marks.map(label)];
}

/** Which column is pointed at, by mouse, finger or arrow keys, also over a redraw; its values stand in the tooltip. */
class Pointer {
  constructor(plot, band, width, pointed) {
    [this.plot, this.band, this.width, this.pointed] = [plot, band, width, pointed];
    const move = (event) =>
      this.point(
        event.currentTarget,
        Math.floor((event.clientX - event.currentTarget.getBoundingClientRect().left - LEFT) / band),
      );
    const leave = (event) => this.point(event.currentTarget, -1);
    this.handlers = {
      onpointermove: move,
      onpointerdown: move,
      onpointerleave: leave,
      onblur: leave,
      onkeydown: (event) => this.key(event),
    };
  }

  key(event) {
    const last = this.plot.columns.length - 1;
    const { at } = this;
    const next = {
      ArrowRight: Math.min(last, at + 1),
      ArrowLeft: Math.max(0, at < 0 ? last : at - 1),
      Home: 0,
      End: last,
      Escape: -1,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.point(event.currentTarget, next);
  }

  get at() {
    return Math.min(this.pointed.get(this.plot.name) ?? -1, this.plot.columns.length - 1);
  }

  point(svg, at) {
    const found = this.plot.columns[at] ? at : -1;
    if (found === this.at) return;
    this.pointed.set(this.plot.name, found);
    morph(svg.querySelector(".cursor"), this.cursor());
    morph(svg.nextElementSibling, this.tip());
  }

  cursor() {
    const { at, band, plot } = this;
    const top = headroom(plot);
    const size = { width: at < 0 ? 0 : band, height: HEIGHT - top - BOTTOM };
    return s("rect", { class: "cursor", x: LEFT + band * at, y: top, ...size });
  }

  tip() {
    const column = this.plot.columns[this.at];
    if (!column) return h("div", { class: "tip", role: "status" });
    const parts = column.lines.map(({ tone, text }) => h("span", null, h("i", { class: `dot tone-${tone}` }), text));
    const tip = h("div", { class: "tip shown", role: "status" }, h("strong", null, column.title), parts);
    const [start, end] = [LEFT + this.band * this.at, LEFT + this.band * (this.at + 1)];
    const after = start + end < this.width;
    tip.style.left = after ? `${end + 6}px` : "auto";
    tip.style.right = after ? "auto" : `${this.width - start + 6}px`;
    return tip;
  }
}
