// Every feature's score over its limit, on one axis, with what happened above it.

const WORST = 6;
const FLOOR = 0.01;

const seen = { model: null, part: null, axis: result.span ? "time" : "event", log: null, on: new Set(), filter: "" };

// A p-value breaches by being small: how many times as surprising as the limit asks for, by logarithms.
function ratio(test, score, limit) {
  if (score === null || limit === null) return null;
  if (facts.p_values.includes(test))
    return limit < 1 && limit > 0 ? Math.max(0, Math.log(Math.max(score, 1e-300)) / Math.log(limit)) : null;
  return limit > 0 ? score / limit : null;
}

function seriesOf(group) {
  const found = list(group.features).map((one) => {
    const values = one.score.map((score, place) => ratio(one.test, score, one.limit[place]));
    return { ...one, values, worst: largest(values) };
  });
  return found.sort((a, b) => b.worst - a.worst);
}

const groupOf = () => result.timeline[seen.model][seen.part];
const readable = (part) => part || "all rows";

function writeTimeline() {
  const known = Object.entries(result.timeline ?? {}).filter(([, parts]) =>
    Object.values(parts).some((group) => list(group.features).length),
  );
  if (!known.length) {
    fill("timeline-body", el("p", { class: "muted" }, "No window was full, so nothing was judged."));
    return;
  }
  // The model whose score went furthest comes first.
  const worst = (parts) =>
    largest(
      Object.values(parts).flatMap((group) =>
        seriesOf(group)
          .slice(0, 1)
          .map((one) => one.worst),
      ),
    );
  const names = known
    .map(([name, parts]) => [name, worst(parts)])
    .sort((a, b) => b[1] - a[1])
    .map(([name]) => name);
  const model = el(
    "select",
    {
      id: "timeline-model",
      onchange: () => {
        pickModel(model.value);
        show();
      },
    },
    names.map((name) => el("option", { value: name }, name)),
  );
  const part = el("select", {
    id: "timeline-part",
    onchange: () => {
      pickPart(part.value);
      show();
    },
  });
  const axis = el(
    "select",
    {
      id: "timeline-axis",
      onchange: () => {
        seen.axis = axis.value;
        show();
      },
    },
    result.span && el("option", { value: "time" }, "time"),
    el("option", { value: "event" }, "events judged"),
  );
  const log = el("input", {
    type: "checkbox",
    id: "timeline-log",
    onchange: () => {
      seen.log = log.checked;
      show();
    },
  });
  const div = chart("Scores over their limits along the replay", makeTimeline, {
    after: (drawn) =>
      drawn.on("plotly_click", ({ points }) => {
        if (points[0]?.data.name === "alarms") chooseAlarm(points[0].customdata[0], true);
      }),
  });
  div.id = "timeline-chart";
  const caption = el("figcaption", { id: "timeline-caption" });
  const beside = el("fieldset", { class: "series", id: "timeline-series" });

  function pickModel(name) {
    seen.model = name;
    const parts = Object.keys(result.timeline[name]);
    part.replaceChildren(...parts.map((key) => el("option", { value: key }, readable(key))));
    part.parentNode?.toggleAttribute("hidden", parts.length < 2);
    pickPart(parts[0]);
  }

  function pickPart(key) {
    [seen.part, seen.filter] = [key, ""];
    seen.series = seriesOf(groupOf());
    seen.on = new Set(seen.series.slice(0, WORST));
    seen.log = largest(seen.series.map((one) => one.worst)) > 8;
    log.checked = seen.log;
    fillSeries();
  }

  function fillSeries() {
    const rows = el("ol");
    const write = () =>
      rows.replaceChildren(
        ...seen.series
          .map((one, place) => [one, place])
          .filter(([one]) => `${one.feature} ${one.test}`.toLowerCase().includes(seen.filter))
          .map(([one, place]) => seriesRow(one, place, show)),
      );
    const only = (chosen) => () => {
      seen.on = new Set(chosen());
      write();
      show();
    };
    const filter = el("input", {
      type: "search",
      placeholder: "Find a feature",
      "aria-label": "Find a feature",
      oninput: () => {
        seen.filter = filter.value.toLowerCase();
        write();
      },
    });
    beside.replaceChildren(
      ...[
        el("legend", {}, "Features, the furthest first"),
        seen.series.length > WORST &&
          el(
            "div",
            { class: "row" },
            el("button", { type: "button", onclick: only(() => seen.series.slice(0, WORST)) }, `Worst ${WORST}`),
            el("button", { type: "button", onclick: only(() => seen.series) }, "All"),
            el("button", { type: "button", onclick: only(() => []) }, "None"),
          ),
        seen.series.length > 2 * WORST && filter,
        rows,
      ].filter(Boolean),
    );
    write();
  }

  function show() {
    caption.textContent = captionText();
    if (window.Plotly && div.isConnected) draw(div);
  }

  pickModel(names[0]);
  fill(
    "timeline-body",
    el(
      "div",
      { class: "controls" },
      el("label", { hidden: names.length < 2 }, "Model", model),
      el("label", { hidden: Object.keys(result.timeline[names[0]]).length < 2 }, "Window, segment", part),
      el("label", {}, "Along", axis),
      el("label", { class: "inline" }, log, "logarithmic"),
    ),
    el(
      "div",
      { class: "beside" },
      el("figure", {}, div, marksKey(), caption, el("p", { class: "small muted controls" }, "Drag to zoom, double-click to go back.")),
      beside,
    ),
  );
  show();
}

function seriesRow(one, place, show) {
  const line = stroke(place);
  const box = el("input", {
    type: "checkbox",
    checked: seen.on.has(one),
    onchange: () => {
      seen.on[box.checked ? "add" : "delete"](one);
      show();
    },
  });
  return el(
    "li",
    {},
    el(
      "label",
      { title: `${one.feature}: ${one.test}, limit ${one.limit_name}` },
      box,
      swatch(line),
      el("span", { class: "name" }, one.feature, " ", el("span", { class: "muted small" }, one.test)),
      el("span", { class: one.worst >= 1 ? "bad-text" : "muted" }, Number.isFinite(one.worst) ? `${number(one.worst)}×` : NONE),
    ),
  );
}

function captionText() {
  const first = seen.series[0];
  const told = `1 is each feature's own limit${seen.series.some((one) => facts.p_values.includes(one.test)) ? " (p-values by their logarithms)" : ""}.`;
  if (!first || !Number.isFinite(first.worst)) return told;
  const place = first.values.indexOf(first.worst);
  const group = groupOf();
  const at = result.span && group.time[place] !== null ? moment(group.time[place]) : `event ${number(group.event[place])}`;
  const over = seen.series.filter((one) => one.worst >= 1).length;
  return (
    `${told} Furthest: ${first.feature} (${first.test}), ${number(first.worst)} times its limit at ${at}. ${number(over)} of ${many(seen.series.length, "series", "series")} went over. ` +
    (group.event.length >= 1000 ? "Each point may be the highest of a stretch." : "")
  );
}

function makeTimeline() {
  const tone = colours();
  const group = groupOf();
  const x = seen.axis === "event" ? group.event : group.time.map((value) => new Date(value * 1000));
  const where = group.event.map((event, place) => `event ${number(event)}${result.span ? `, ${moment(group.time[place])}` : ""}`);
  const data = seen.series
    .map((one, place) => [one, stroke(place)])
    .filter(([one]) => seen.on.has(one))
    .map(([one, line]) => ({
      type: "scatter",
      mode: "lines",
      x,
      y: seen.log ? one.values.map((value) => (value === null ? null : Math.max(value, FLOOR))) : one.values,
      meta: [plain(short(one.feature, 60)), plain(one.test), plain(one.limit_name)],
      customdata: one.score.map((score, at) => [score, one.limit[at], where[at], one.values[at]]),
      hovertemplate:
        "<b>%{meta[0]}</b><br>%{customdata[3]:.3~g} times its limit<br>%{meta[1]} %{customdata[0]:.3~g}, limit %{customdata[1]:.3~g} (%{meta[2]})<br>%{customdata[2]}<extra></extra>",
      line: { color: tone.series[line.colour], width: 1.6, dash: DASHES[line.dash] },
    }));
  const dots = data.flatMap(dotsOf);
  const high = Math.max(largest(seen.series.filter((one) => seen.on.has(one)).map((one) => one.worst)), 1);
  const low = Math.max(FLOOR, Math.min(0.3, ...data.map((one) => smallest(one.y))));
  const range = seen.log ? [Math.log10(low * 0.8), Math.log10(high * 1.5)] : [0, high * 1.08];
  const lanes = laneTraces(tone);
  const first = seen.axis === "time" ? new Date(result.span.first * 1000) : 0;
  const last = seen.axis === "time" ? new Date(result.span.last * 1000) : result.events;
  const limitLine = {
    type: "line",
    xref: "paper",
    x0: 0,
    x1: 1,
    yref: "y",
    y0: 1,
    y1: 1,
    line: { color: tone.text, width: 1.5, dash: "dash" },
  };
  const layout = layoutOf(470, {
    hovermode: "closest",
    xaxis: {
      type: seen.axis === "time" ? "date" : "linear",
      range: [first, last],
      title: { text: seen.axis === "time" ? "" : "events judged" },
    },
    yaxis: {
      type: seen.log ? "log" : "linear",
      range,
      domain: [0, 0.83],
      title: { text: "score / limit" },
      ...(seen.log ? { dtick: 1, exponentformat: "none" } : {}),
    },
    shapes: [limitLine, ...lanes.shapes],
    annotations: [
      {
        xref: "paper",
        x: 1,
        xanchor: "right",
        yref: "y",
        y: seen.log ? 0 : 1,
        yanchor: "bottom",
        text: "limit",
        showarrow: false,
        font: { color: tone.text },
      },
    ],
  });
  layout.yaxis2 = {
    domain: [0.86, 1],
    range: [-0.6, lanes.names.length - 0.4],
    tickvals: lanes.names.map((_, place) => place),
    ticktext: lanes.names,
    showgrid: false,
    zeroline: false,
    fixedrange: true,
    automargin: true,
  };
  return { data: [...data, ...dots, ...lanes.data], layout };
}

// A point between gaps is no line: it gets a dot.
function dotsOf(line) {
  const gap = (place) => (line.y[place] ?? null) === null;
  const places = line.y.map((_, place) => place).filter((place) => !gap(place) && gap(place - 1) && gap(place + 1));
  const of = (values) => places.map((place) => values[place]);
  return places.length
    ? [
        {
          ...line,
          mode: "markers",
          x: of(line.x),
          y: of(line.y),
          customdata: of(line.customdata),
          marker: { color: line.line.color, size: 6 },
        },
      ]
    : [];
}
