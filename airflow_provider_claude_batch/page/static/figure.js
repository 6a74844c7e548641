// Draws one chart of stacked columns with its legend, tooltip and table; what is in it comes from plots.js.
import { h, s } from "./dom.js";

const [LEFT, RIGHT, BOTTOM, HEIGHT] = [52, 8, 22, 200];
const headroom = ({ marks }) => (marks?.length ? 38 : 12);

export function figure(plot, width, asTable, flip) {
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
        ? chart(plot, Math.max(240, width))
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

function chart(plot, width) {
  const band = (width - LEFT - RIGHT) / plot.columns.length;
  const bar = plot.tight ? band - 2 : Math.max(1, Math.min(28, band * 0.74));
  const TOP = headroom(plot);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / plot.max);
  const pointer = new Pointer(plot, band);
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
        s("rect", { class: "cursor", "data-keep": "", x: -9, y: TOP, width: 0, height: HEIGHT - TOP - BOTTOM }),
        plot.columns.map((column, i) => stack(column, LEFT + band * (i + 0.5) - bar / 2, bar, y)),
        labels(plot, band, width),
        lines(plot.marks ?? [], ({ at }) => LEFT + band * at, width),
      ),
      h("div", { class: "tip", role: "status", "data-keep": "" }),
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

function lines(marks, x, width) {
  const line = (mark, i) =>
    s("line", { class: `mark mark-${i}`, x1: x(mark), x2: x(mark), y1: 17 + i * 15, y2: HEIGHT - BOTTOM });
  const label = (mark, i) =>
    s(
      "text",
      { class: "mark-label", x: Math.min(x(mark) + 5, width - 7 * mark.label.length), y: 13 + i * 15 },
      mark.label,
    );
  return [marks.map(line), marks.map(label)];
}

/** Which column is pointed at, by mouse, finger or arrow keys; its values stand in the tooltip. */
class Pointer {
  constructor(plot, band) {
    this.plot = plot;
    this.band = band;
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
    const at = Number(event.currentTarget.dataset.at ?? -1);
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

  point(svg, at) {
    const column = this.plot.columns[at];
    const [tip, cursor] = [svg.nextElementSibling, svg.querySelector(".cursor")];
    tip.classList.toggle("shown", Boolean(column));
    cursor.setAttribute("width", column ? this.band : 0);
    if (!column) return delete svg.dataset.at;
    if (svg.dataset.at === String(at)) return;
    svg.dataset.at = at;
    cursor.setAttribute("x", LEFT + this.band * at);
    tip.replaceChildren(
      h("strong", null, column.title),
      ...column.lines.map(({ tone, text }) => h("span", null, h("i", { class: `dot tone-${tone}` }), text)),
    );
    const x = LEFT + this.band * (at + 0.5);
    const after = x < svg.clientWidth / 2;
    tip.style.left = after ? `${x + this.band / 2 + 6}px` : "auto";
    tip.style.right = after ? "auto" : `${svg.clientWidth - x + this.band / 2 + 6}px`;
  }
}
