// What stands beside and above the scores: swatches, the lanes of alarms, promotions and known drifts, and where they lie.

// Ten colours, then the same with another dash; as CSS variables of the moment they follow light and dark by themselves.
const stroke = (place) => ({ colour: place % 10, dash: Math.floor(place / 10) % DASHES.length });

const SVG = "http://www.w3.org/2000/svg";

function drawn(width, shape, attributes) {
  const svg = document.createElementNS(SVG, "svg");
  const node = document.createElementNS(SVG, shape);
  svg.setAttribute("width", width);
  svg.setAttribute("height", 12);
  svg.setAttribute("aria-hidden", "true");
  Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
  svg.append(node);
  return svg;
}

function swatch({ colour, dash }) {
  const pattern = ["", "2 3", "6 3", "6 3 2 3", "9 3"][dash];
  return drawn(26, "line", { x1: 0, x2: 26, y1: 6, y2: 6, class: `stroke-${colour}`, "stroke-width": 3, "stroke-dasharray": pattern });
}

function marksKey() {
  const entry = (text, shape, attributes) => el("li", {}, drawn(14, shape, attributes), text);
  const named = drifts.length > 0;
  return el(
    "ul",
    { class: "key small muted", "aria-label": "Marks above the scores" },
    entry("alarm that starts a retraining", "path", { d: "M1 1h12l-6 10z", class: named ? "fill-good" : "fill-bad" }),
    entry("alert only", "path", { d: "M2 2h10l-5 8z", fill: "none", "stroke-width": 2, class: named ? "stroke-good" : "stroke-bad" }),
    named && entry("false alarm", "path", { d: "M1 1h12l-6 10z", class: "fill-bad" }),
    named && entry("known drift", "rect", { x: 0, y: 3, width: 14, height: 6, class: "fill-accent", opacity: 0.5 }),
    list(result.promotions).length > 0 && entry("promotion", "path", { d: "M7 1l6 5-6 5-6-5z", class: "fill-text" }),
  );
}

// Where things lie along the axis chosen

function along(one) {
  return seen.axis === "event" ? one.event : one.time === null || one.time === undefined ? null : new Date(one.time * 1000);
}

// From one axis to the other by the model's own points.
function carried(value, from, to) {
  if (!from.length) return null;
  let place = from.findIndex((one) => one >= value);
  if (place < 0) place = from.length - 1;
  if (place === 0 || from[place] === from[place - 1]) return to[place];
  const part = Math.min(Math.max((value - from[place - 1]) / (from[place] - from[place - 1]), 0), 1);
  return to[place - 1] + part * (to[place] - to[place - 1]);
}

function placed(value, isTime) {
  const group = groupOf();
  if (value === null || value === undefined) return null;
  if (seen.axis === "time") return new Date(1000 * (isTime ? value : carried(value, group.event, group.time)));
  return isTime ? carried(value, group.time, group.event) : value;
}

// A drift begins at a time, or at a row where the file of known drifts says so.
function isTime(value) {
  return result.span !== null && result.span !== undefined && value >= result.span.first - (result.span.last - result.span.first) - 1;
}

const MOST_LINES = 150;

function laneTraces(tone) {
  const own = alarms.map((one, place) => ({ ...one, place })).filter((one) => one.model === seen.model || !one.model);
  const marks = own.map((one) => ({ one, x: along(one) })).filter(({ x }) => x !== null);
  const colour = (one) => (drifts.length && one.known_drift ? tone.good : tone.bad);
  const promoted = list(result.promotions).filter((one) => one.model === seen.model);
  const bands = drifts.filter((one) => !one.model || one.model === seen.model);
  const names = ["alarms", ...(promoted.length ? ["promoted"] : []), ...(bands.length ? ["known drifts"] : [])];
  const data = [
    {
      type: "scatter",
      mode: "markers",
      yaxis: "y2",
      x: marks.map(({ x }) => x),
      y: marks.map(() => 0),
      name: "alarms",
      customdata: marks.map(({ one }) => [one.place, plain(alarmTitle(one)), plain(short(alarmWhy(one), 80))]),
      hovertemplate: "<b>%{customdata[1]}</b><br>%{customdata[2]}<extra></extra>",
      marker: {
        size: 12,
        symbol: marks.map(({ one }) => (one.decision === "retrain" ? "triangle-down" : "triangle-down-open")),
        color: marks.map(({ one }) => colour(one)),
        line: { width: 1.5, color: marks.map(({ one }) => colour(one)) },
      },
    },
  ];
  const moments = promoted.map((one) => placed(one.time, true));
  if (promoted.length)
    data.push({
      type: "scatter",
      mode: "markers",
      yaxis: "y2",
      x: moments,
      y: promoted.map(() => names.indexOf("promoted")),
      customdata: promoted.map((one) => [plain(one.version), moment(one.time)]),
      hovertemplate: "version %{customdata[0]} promoted<br>%{customdata[1]}<extra></extra>",
      marker: { size: 11, symbol: "diamond", color: tone.text },
    });
  const row = names.indexOf("known drifts");
  const spans = bands.map((one) => bandOf(one)).filter(({ from }) => from !== null);
  for (const { one, from, until } of spans)
    data.push({
      type: "scatter",
      mode: "lines",
      yaxis: "y2",
      x: [from, until],
      y: [row, row],
      line: { color: tone.accent, width: 10 },
      opacity: 0.6,
      meta: [plain(one.name), one.found ? `found ${number(one.delay_events)} events later` : "missed"],
      hovertemplate: "<b>%{meta[0]}</b><br>%{meta[1]}<extra></extra>",
    });
  const upright = (x, color, dash) => ({
    type: "line",
    xref: "x",
    x0: x,
    x1: x,
    yref: "paper",
    y0: 0,
    y1: 0.83,
    line: { color, width: 1, dash },
    opacity: 0.55,
    layer: "below",
  });
  const shapes = [
    ...spans.map(({ from, until }) => ({
      type: "rect",
      xref: "x",
      x0: from,
      x1: until,
      yref: "paper",
      y0: 0,
      y1: 0.83,
      fillcolor: tone.accent,
      opacity: 0.09,
      line: { width: 0 },
      layer: "below",
    })),
    ...(marks.length <= MOST_LINES ? marks.map(({ one, x }) => upright(x, colour(one), "dot")) : []),
    ...moments.map((x) => upright(x, tone.text, "solid")),
  ];
  return { data, shapes, names };
}

function bandOf(one) {
  const from = placed(one.from, isTime(one.from));
  const end = seen.axis === "time" ? new Date(result.span.last * 1000) : result.events;
  return { one, from, until: one.until === null || one.until === undefined ? end : placed(one.until, isTime(one.until)) };
}
