// Known drifts, and accuracy along the way.

function writeKnown() {
  if (!drifts.length) {
    fill(
      "known-body",
      el(
        "p",
        { class: "muted" },
        "No known drift was named; with --known-drifts FILE the replay tells which were found, how late, and which alarms were false.",
      ),
    );
    return;
  }
  const start = (value) => (isTime(value) ? time(value) : `row ${number(value)}`);
  const columns = [
    {
      title: "Drift",
      of: (one) => one.name,
      show: (one) => [one.name, one.injected && el("div", { class: "small muted" }, "injected: it did not happen")],
      name: true,
    },
    models.length > 1 && { title: "Model", of: (one) => one.model, name: true },
    { title: "From", of: (one) => one.from, show: (one) => start(one.from), number: true },
    {
      title: "Until",
      of: (one) => one.until,
      show: (one) => (one.until === null || one.until === undefined ? "the end" : start(one.until)),
      number: true,
    },
    {
      title: "Found",
      of: foundText,
      show: (one) => el("span", { class: one.found ? "tag good" : one.happened === false ? "tag" : "tag bad" }, foundText(one)),
    },
    { title: "Events later", of: (one) => one.delay_events, show: (one) => shown(one.delay_events), number: true },
    drifts.some((one) => typeof one.delay_seconds === "number") && {
      title: "Time later",
      of: (one) => one.delay_seconds,
      show: (one) => duration(one.delay_seconds),
      number: true,
    },
    {
      title: "Alarm",
      of: (one) => one.alarm,
      show: (one) =>
        one.alarm === null || one.alarm === undefined
          ? NONE
          : el(
              "button",
              { type: "button", "aria-label": `Show alarm ${one.alarm + 1}`, onclick: () => chooseAlarm(one.alarm, true) },
              number(one.alarm + 1),
            ),
    },
  ].filter(Boolean);
  fill("known-body", table("What was known to have happened, and when it was seen", columns, drifts));
}

// A stretch that was not replayed holds nothing to find.
const foundText = (one) => (one.found ? "found" : one.happened === false ? "not in this stretch" : "missed");

// Accuracy

function accuracies() {
  return Object.entries(result.accuracy ?? {})
    .map(([model, given]) => {
      const points = list(given);
      return { model, points, fall: result.falls?.[model] ?? null, before: result.alarm_before_fall?.[model] ?? null };
    })
    .filter((one) => one.points.length);
}

// Where answers are numbers there is no accuracy, but an error.
const level = (point) => point.accuracy ?? point.error ?? null;
const levels = (one) => one.points.map(level).filter((value) => value !== null);
const isRight = (one) => one.points.some((point) => point.accuracy !== null && point.accuracy !== undefined);
const levelText = (one, value) => (isRight(one) ? percent(value) : number(value));

function writeAccuracy() {
  const known = accuracies();
  if (!known.length) {
    fill("accuracy-body", el("p", { class: "muted" }, "There were no labels, so the models' accuracy is not known."));
    return;
  }
  const div = chart("Accuracy of each model along the replay, with its alarms", () => makeAccuracy(known));
  div.id = "accuracy-chart";
  fill(
    "accuracy-body",
    el("figure", {}, div, el("figcaption", {}, "Triangles are alarms of the model of the same colour.")),
    table(
      "From the first to the last labels",
      [
        { title: "Model", of: (one) => one.model, name: true },
        { title: "Labels", of: (one) => one.points.at(-1).labels, show: (one) => shown(one.points.at(-1).labels), number: true },
        { title: "", show: (one) => (isRight(one) ? "accuracy" : "error") },
        { title: "First", of: (one) => levels(one)[0], show: (one) => shown(levels(one)[0], levelText(one, levels(one)[0])), number: true },
        { title: "Worst", of: worstLevel, show: (one) => shown(worstLevel(one), levelText(one, worstLevel(one))), number: true },
        {
          title: "Last",
          of: (one) => levels(one).at(-1),
          show: (one) => shown(levels(one).at(-1), levelText(one, levels(one).at(-1))),
          number: true,
        },
        {
          title: "Fell",
          of: (one) => one.fall?.time,
          show: (one) =>
            one.fall
              ? [
                  levelText(one, one.fall.first),
                  " → ",
                  levelText(one, one.fall.accuracy),
                  result.span ? [", seen ", time(one.fall.time)] : "",
                ]
              : el("span", { class: "muted" }, "no"),
          text: true,
        },
        { title: "An alarm before it fell", of: (one) => one.before, show: (one) => beforeFall(one) },
      ],
      known,
    ),
  );
}

const worstLevel = (one) => (isRight(one) ? smallest(levels(one)) : largest(levels(one)));

function beforeFall({ before, fall }) {
  if (before === null) return el("span", { class: "muted" }, NONE);
  return el(
    "span",
    { class: before ? "tag good" : "tag bad" },
    before ? "yes" : "no",
    before && typeof fall?.alarm_time === "number" && result.span ? `, ${duration(fall.time - fall.alarm_time)} before` : "",
  );
}

function makeAccuracy(known) {
  const tone = colours();
  const right = known.every(isRight);
  const timed = known.every((one) => one.points.every((point) => typeof point.time === "number")) && Boolean(result.span);
  const x = (value) => (timed ? new Date(value * 1000) : value);
  const data = known.flatMap((one, place) => {
    const color = tone.series[place % 10];
    const times = one.points.map((point, at) => (timed ? point.time : at));
    const heights = one.points.map(level);
    const line = {
      type: "scatter",
      mode: one.points.length > 1 ? "lines" : "markers",
      x: times.map(x),
      y: heights,
      name: plain(short(one.model)),
      legendgroup: String(place),
      meta: [plain(one.model)],
      customdata: one.points.map((point) => number(point.labels)),
      line: { color, width: 1.8, dash: DASHES[Math.floor(place / 10) % 5] },
      hovertemplate: `<b>%{meta[0]}</b><br>${right ? "%{y:.1%} right" : "error %{y:.3~g}"} after %{customdata} labels<br>%{x}<extra></extra>`,
    };
    const own = timed ? alarms.filter((alarm) => alarm.model === one.model && typeof alarm.time === "number") : [];
    const marks = {
      type: "scatter",
      mode: "markers",
      x: own.map((alarm) => x(alarm.time)),
      y: own.map((alarm) => carried(alarm.time, times, heights)),
      showlegend: false,
      legendgroup: String(place),
      customdata: own.map((alarm) => plain(short(alarmWhy(alarm), 80))),
      marker: { symbol: "triangle-down", size: 12, color, line: { color: tone.text, width: 1 } },
      hovertemplate: "<b>alarm</b> %{customdata}<extra></extra>",
    };
    return [line, marks];
  });
  return {
    data,
    layout: layoutOf(320, {
      showlegend: known.length > 1,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
      xaxis: timed ? { type: "date" } : { title: { text: "blocks of labels" } },
      yaxis: right
        ? { tickformat: ".0%", title: { text: "accuracy" } }
        : { title: { text: known.some(isRight) ? "accuracy or error" : "error" } },
    }),
  };
}
