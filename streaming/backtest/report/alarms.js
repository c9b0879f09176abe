// The alarms: the list, and of the one chosen what moved and how its window differs from the reference.

const NUMBERS = ["mean", "median", "standard deviation", "interquartile range", "rank correlation"];

const partOf = (alarm) => [alarm.window && `window ${alarm.window}`, alarm.segment].filter(Boolean).join(", ");
const modelAndPart = (alarm) => [alarm.model, partOf(alarm)].filter(Boolean).join(", ");

function alarmTitle(alarm) {
  return `Alarm ${alarm.place + 1}, event ${number(alarm.event)}${alarm.time !== null && alarm.time !== undefined && result.span ? `, ${moment(alarm.time)}` : ""}`;
}

// As "petal_width mean 1.2 -> 3.05 (up)": the first finding, and how many features more.
function alarmWhy(alarm) {
  const found = list(alarm.findings);
  const features = new Set(found.map((one) => one.feature));
  if (!found.length) return NONE;
  return `${found[0].feature}${found[0].what ? ` ${changeText(found[0])}` : ""}${features.size > 1 ? ` and ${many(features.size - 1, "feature")} more` : ""}`;
}

function changeText(one) {
  if (!one.what) return "";
  const told = NUMBERS.some((name) => one.what.startsWith(name)) ? number : percent;
  const level = (value) => (value === null || value === undefined ? "none" : told(value));
  return `${one.what} ${level(one.before)} → ${level(one.after)}${one.direction ? ` (${one.direction})` : ""}`;
}

function sinceText(one) {
  if (one.since === null || one.since === undefined) return "";
  return `since event ${number(one.since)}${one.earlier ? " or before" : ""}`;
}

let chosenAlarm = null;
let alarmTable = null;

function writeAlarms() {
  if (!alarms.length) {
    fill("alarms-body", el("p", { class: "muted" }, "There was no alarm: nothing that was judged went over its limits for long enough."));
    return;
  }
  const rows = alarms.map((one, place) => ({ ...one, place }));
  const some = (name) => rows.some((one) => one[name] !== null && one[name] !== undefined && one[name] !== "");
  const pick = (one) =>
    el(
      "button",
      { type: "button", "aria-label": `Show alarm ${one.place + 1}`, onclick: () => chooseAlarm(one.place, true) },
      number(one.place + 1),
    );
  const columns = [
    { title: "Alarm", of: (one) => one.place, show: pick },
    { title: "Event", of: (one) => one.event, show: (one) => shown(one.event), number: true },
    result.span && some("time") && { title: "Time", of: (one) => one.time, show: (one) => time(one.time), number: true },
    (models.length > 1 || rows.some(partOf)) && {
      title: rows.some(partOf) ? "Model, part" : "Model",
      of: modelAndPart,
      show: modelAndPart,
      name: true,
    },
    { title: "Decision", of: (one) => one.decision, show: (one) => one.decision ?? NONE },
    drifts.length > 0 && {
      title: "Known drift",
      of: (one) => one.known_drift,
      show: (one) =>
        one.known_drift ? el("span", { class: "tag good" }, one.known_drift) : el("span", { class: "tag bad" }, "false alarm"),
    },
    { title: "What moved most", of: alarmWhy, show: alarmWhy, text: true },
  ].filter(Boolean);
  alarmTable = table("All alarms, in the order of the log", columns, rows, { sort: 0, chosen: (one) => one.place === chosenAlarm });
  alarmTable.className = "some-rows";
  const choice = el(
    "select",
    { id: "alarm-choice", onchange: () => chooseAlarm(Number(choice.value)) },
    rows.map((one) => el("option", { value: one.place }, alarmTitle(one))),
  );
  const step = (by, text) =>
    el("button", { type: "button", id: `alarm${by < 0 ? "-before" : "-after"}`, onclick: () => chooseAlarm(chosenAlarm + by) }, text);
  fill(
    "alarms-body",
    alarmTable,
    el(
      "div",
      { class: "chosen-alarm", id: "chosen-alarm", tabindex: "-1" },
      el(
        "div",
        { class: "controls" },
        el("label", {}, "Alarm", choice),
        step(-1, "Previous"),
        step(1, "Next"),
        el("button", { type: "button", onclick: zoomToAlarm }, "Show on the timeline"),
      ),
      el("div", { id: "alarm-detail" }),
    ),
  );
  chooseAlarm(0);
}

function chooseAlarm(place, go = false) {
  if (place < 0 || place >= alarms.length) return;
  chosenAlarm = place;
  byId("alarm-choice").value = String(place);
  byId("alarm-before").disabled = place === 0;
  byId("alarm-after").disabled = place === alarms.length - 1;
  alarmTable.rewrite();
  writeAlarm({ ...alarms[place], place });
  if (go) {
    byId("chosen-alarm").scrollIntoView({ block: "start" });
    byId("chosen-alarm").focus({ preventScroll: true });
  }
}

function writeAlarm(alarm) {
  const evidence = list(result.evidence).find((one) => one.alarm === alarm.place);
  const found = list(alarm.findings);
  const pictures = list(evidence?.features).map((one) => multiple(one, found));
  fill(
    "alarm-detail",
    el(
      "h3",
      {},
      alarmTitle(alarm),
      alarm.model ? ` · ${alarm.model}${alarm.version ? `, version ${alarm.version}` : ""}` : "",
      partOf(alarm) ? ` · ${partOf(alarm)}` : "",
    ),
    el(
      "p",
      {},
      el("strong", {}, alarm.decision === "retrain" ? "Starts a retraining" : "Alerts"),
      alarm.reason ? `: ${alarm.reason}` : "",
      drifts.length
        ? alarm.known_drift
          ? `. It belongs to the known drift ${alarm.known_drift}.`
          : ". It belongs to no known drift: a false alarm."
        : "",
    ),
    el(
      "ol",
      { class: "findings" },
      found.map((one) => findingRow(one)),
    ),
    pictures.length > 0 && el("p", { class: "small muted" }, "Grey: the reference. Coloured: the window at the alarm."),
    pictures.length
      ? el("div", { class: "multiples" }, pictures)
      : el("p", { class: "muted" }, "No distributions were kept of this alarm; they are of the first alarms only."),
  );
  if (window.Plotly) byId("alarm-detail").querySelectorAll(".chart").forEach(draw);
}

function findingRow(one) {
  const share = one.share === null || one.share === undefined ? null : `${percent(one.share)} of the verdict`;
  const beside = list(one.moved)
    .slice(1)
    .filter((more) => more.what)
    .map((more) => changeText({ ...more, direction: "" }));
  return el(
    "li",
    {},
    el("strong", {}, one.feature),
    ` ${[changeText(one), sinceText(one), share].filter(Boolean).join("; ")} `,
    share && el("span", { class: "bar", style: `width: ${Math.round(90 * Math.min(Math.max(one.share, 0), 1))}px`, "aria-hidden": "true" }),
    el(
      "div",
      { class: "small muted" },
      `${one.signal || ""} ${one.detector}: score `.trimStart(),
      shown(one.score),
      ", limit ",
      shown(one.limit),
      beside.length ? `. Beside it: ${beside.join(", ")}` : "",
    ),
  );
}

function zoomToAlarm() {
  const alarm = alarms[chosenAlarm];
  if (!result.timeline?.[alarm.model]) return;
  const model = byId("timeline-model");
  if (model.value !== alarm.model) {
    model.value = alarm.model;
    model.dispatchEvent(new Event("change"));
  }
  const div = byId("timeline-chart");
  const whole = div.layout.xaxis.range.map((value) => (seen.axis === "time" ? Number(new Date(value)) : value));
  const at = seen.axis === "time" ? alarm.time * 1000 : alarm.event;
  const half = Math.max((whole[1] - whole[0]) / 20, 1);
  Plotly.relayout(div, { "xaxis.range": [at - half, at + half] });
  byId("timeline").scrollIntoView();
}

// One feature's distribution

function multiple(one, found) {
  const finding = found.find((other) => other.feature === one.feature);
  const make = one.kind === "categorical" ? () => bars(one) : () => steps(one);
  return el(
    "figure",
    {},
    el("h4", { title: one.feature }, one.feature),
    el("figcaption", {}, finding ? changeText(finding) || finding.detector : ""),
    chart(`Distribution of ${one.feature}: window against reference`, make, { config: SMALL }),
  );
}

const MOST_NAMES = 10;

function bars(one) {
  const tone = colours();
  const sides = { reference: one.reference, window: one.window };
  const shares = (side) => new Map(list(side.names).map((name, place) => [String(name), side.share[place]]));
  const [before, after] = [shares(sides.reference), shares(sides.window)];
  const names = [...new Set([...before.keys(), ...after.keys()])];
  const most = (name) => Math.max(before.get(name) ?? 0, after.get(name) ?? 0);
  const told = names
    .sort((a, b) => most(b) - most(a))
    .slice(0, MOST_NAMES)
    .reverse();
  const trace = (shares, name, color) => ({
    type: "bar",
    orientation: "h",
    name,
    y: told.map((_, place) => place),
    x: told.map((one) => shares.get(one) ?? 0),
    marker: { color },
    customdata: told.map((one) => [plain(short(one, 60)), percent(shares.get(one) ?? 0)]),
    hovertemplate: `%{customdata[0]}: %{customdata[1]} (${name})<extra></extra>`,
  });
  const more = names.length - told.length;
  return {
    data: [trace(after, "window", tone.accent), trace(before, "reference", tone.back)],
    layout: layoutOf(220, {
      onPaper: 310,
      margin: { l: 20, r: 8, t: 6, b: more ? 44 : 30 },
      bargap: 0.25,
      xaxis: {
        tickformat: ".0%",
        rangemode: "tozero",
        title: { text: more ? `${more} rarer categories are not shown` : "", font: { size: 11 } },
      },
      yaxis: { tickvals: told.map((_, place) => place), ticktext: told.map((one) => plain(short(one, 18))), showgrid: false },
    }),
  };
}

function steps(one) {
  const tone = colours();
  const [before, after] = [binned(one.reference), binned(one.window)];
  const even = before.even && after.even;
  const trace = (side, name, color, fillcolor) => ({
    type: "scatter",
    mode: "lines",
    name,
    x: [side.edges[0], ...side.edges, side.edges.at(-1)],
    y: [0, ...heights(side, even), 0],
    line: { shape: "hv", color, width: fillcolor ? 1 : 2 },
    fill: fillcolor ? "tozeroy" : "none",
    fillcolor,
    hovertemplate: `%{x:.4~g}: ${even ? "%{y:.1%}" : "%{y:.3~g}"} (${name})<extra></extra>`,
  });
  const drawn = [];
  if (before.edges.length > 1) drawn.push(trace(before, "reference", tone.back, `${tone.back}66`));
  if (after.edges.length > 1) drawn.push(trace(after, "window", tone.accent));
  return {
    data: drawn,
    layout: layoutOf(220, {
      onPaper: 310,
      margin: { l: 44, r: 8, t: 6, b: 30 },
      xaxis: {},
      yaxis: { rangemode: "tozero", ...(even ? { tickformat: ".0%" } : { title: { text: "density", font: { size: 11 } } }) },
    }),
  };
}

// Edges without a bound lie one bin's width beyond the next.
function binned(side) {
  const edges = [...list(side?.edges)];
  if (edges.length > 2) {
    if (edges[0] === null) edges[0] = edges[1] - (edges[2] - edges[1] || 1);
    if (edges.at(-1) === null) edges[edges.length - 1] = edges.at(-2) + (edges.at(-2) - edges.at(-3) || 1);
  }
  const widths = edges.slice(1).map((edge, place) => edge - edges[place]);
  const even = widths.every((width) => Math.abs(width - widths[0]) <= 0.01 * Math.abs(widths[0]));
  return { edges, widths, even, share: list(side?.share) };
}

// Bins of one width show shares; others show densities, else wide bins would look full.
function heights(side, even) {
  const tall = side.share.map((share, place) => (even ? share : share / (side.widths[place] || 1)));
  return [...tall, tall.at(-1) ?? 0];
}
