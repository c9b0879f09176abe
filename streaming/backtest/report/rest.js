// Decisions held back, what was replayed, and everything as files.

const WHY_HELD = {
  unconfirmed: "not enough of the last windows were over the limit",
  few: "too few predictions of the version so far",
  alerted: "its incident had been alerted already, and retraining is off",
  active: "a retraining was running",
  cooldown: "the last retraining was too recent",
};

function writeDecisions() {
  const rows = [
    { what: "retraining started", kind: "retrain", count: result.decisions?.retrain ?? 0 },
    { what: "alert only", kind: "alert", count: result.decisions?.alert ?? 0 },
    ...held.map(([kind, count]) => ({ what: `held back: ${WHY_HELD[kind] ?? kind}`, kind, count })).sort((a, b) => b.count - a.count),
  ];
  const most = Math.max(...rows.map((one) => one.count), 1);
  const bar = (one) => el("span", { class: "bar", style: `width: ${Math.round((160 * one.count) / most)}px`, "aria-hidden": "true" });
  const incidents = list(result.incidents);
  const promotions = list(result.promotions);
  fill(
    "decisions-body",
    table(
      "What the governor made of the breaches",
      [
        { title: "Decision", of: (one) => one.what, text: true },
        { title: "Kind", of: (one) => one.kind, show: (one) => el("code", {}, one.kind) },
        { title: "Times", of: (one) => one.count, show: (one) => shown(one.count), number: true },
        { title: "", show: (one) => (one.count ? bar(one) : "") },
      ],
      rows,
    ),
    incidents.length > 0 &&
      table(
        "Incidents",
        [
          { title: "Incident", of: (one) => one.id, show: (one) => el("code", {}, one.id), name: true },
          { title: "Model", of: (one) => one.model, name: true },
          { title: "Opened", of: (one) => one.opened, show: (one) => time(one.opened), number: true },
          {
            title: "Closed",
            of: (one) => one.closed,
            show: (one) => (one.closed === null ? "still open" : time(one.closed)),
            number: true,
          },
          { title: "Decisions", of: (one) => one.decisions, show: (one) => shown(one.decisions), number: true },
        ],
        incidents,
      ),
    promotions.length > 0 &&
      table(
        "Promotions on the log",
        [
          { title: "Model", of: (one) => one.model, name: true },
          { title: "Version", of: (one) => one.version, name: true },
          { title: "Time", of: (one) => one.time, show: (one) => time(one.time), number: true },
        ],
        promotions,
      ),
  );
}

function writeReplayed() {
  const places = list(result.unreadable?.places);
  const fact = (title, value) => [el("dt", {}, title), el("dd", {}, value)];
  fill(
    "replayed-body",
    el(
      "dl",
      { class: "facts" },
      fact("Source", result.source || NONE),
      fact("Since", result.since ?? "the beginning"),
      fact("Until", result.until ?? "the end"),
      fact("Took", [
        shown(result.seconds, `${number(result.seconds)} s`),
        `, of which ${number(result.calibration_seconds)} s for calibration; ${number(result.events_per_second)} events per second`,
      ]),
    ),
    list(result.notes).length > 0 && [
      el("h3", {}, "Notes"),
      el(
        "ul",
        {},
        result.notes.map((note) => el("li", {}, note)),
      ),
    ],
    models.length > 0 &&
      table(
        "Models",
        [
          { title: "Model", of: (one) => one.model, name: true },
          { title: "Versions", of: (one) => list(one.versions).join(", "), show: (one) => list(one.versions).join(", "), name: true },
          { title: "Predictions", of: (one) => one.predictions, show: (one) => shown(one.predictions), number: true },
          { title: "Labels", of: (one) => one.labels, show: (one) => shown(one.labels), number: true },
          { title: "Verdicts", of: (one) => one.verdicts, show: (one) => shown(one.verdicts), number: true },
          { title: "Breached", of: (one) => one.breached, show: (one) => shown(one.breached), number: true },
          {
            title: "Counted beside",
            show: (one) =>
              Object.entries(one.counts ?? {})
                .filter(([, count]) => count)
                .map(([name, count]) => `${name} ${number(count)}`)
                .join(", ") || NONE,
            text: true,
          },
        ],
        models,
      ),
    (result.unreadable?.count ?? 0) > 0 &&
      el(
        "details",
        { open: places.length <= 10 },
        el("summary", {}, `${many(result.unreadable.count, "record")} could not be read`),
        places.length < result.unreadable.count && el("p", { class: "muted" }, `The first ${number(places.length)} of them:`),
        table(
          "Records that could not be read",
          [
            { title: "Place", of: (one) => one.place, show: (one) => el("code", {}, one.place), name: true },
            { title: "Reason", of: (one) => one.reason, text: true },
          ],
          places,
        ),
      ),
  );
}

// All numbers as files

function sheets() {
  const whole = (rows, names) => [names, () => rows.map((row) => names.map((name) => row[name]))];
  const finding = ["feature", "detector", "signal", "score", "limit", "direction", "what", "before", "after", "since", "earlier", "share"];
  const alarm = ["event", "time", "model", "version", "window", "segment", "decision", "reason", "incident", "run_id", "known_drift"];
  return {
    alarms: [
      ["alarm", ...alarm, ...finding.map((name) => `finding_${name}`)],
      () =>
        alarms.flatMap((one, place) =>
          (list(one.findings).length ? one.findings : [{}]).map((found) => [
            place + 1,
            ...alarm.map((name) => one[name]),
            ...finding.map((name) => found[name]),
          ]),
        ),
    ],
    timeline: [["model", "part", "feature", "test", "limit_name", "event", "time", "score", "limit"], timelineRows],
    distributions: [["alarm", "model", "feature", "of", "from", "to", "name", "share"], distributionRows],
    known_drifts: whole(drifts, [
      "name",
      "model",
      "from",
      "until",
      "found",
      "delay_events",
      "delay_seconds",
      "alarm",
      "injected",
      "happened",
    ]),
    accuracy: [
      ["model", "time", "labels", "accuracy", "error"],
      () => accuracies().flatMap((one) => one.points.map((point) => [one.model, point.time, point.labels, point.accuracy, point.error])),
    ],
    settings: [
      [
        "number",
        "label",
        "settings",
        "false_alarms",
        "false_alarms_per_30d",
        "false_alarms_per_100k_events",
        "found",
        "missed",
        "median_delay_events",
        "alarms",
        "pareto",
        "baseline",
      ],
      () =>
        tried.map((one) => [
          one.place + 1,
          one.label,
          one.settings,
          one.false_alarms?.count,
          one.false_alarms?.per_30d,
          one.false_alarms?.per_100k_events,
          one.found,
          one.missed,
          one.median_delay_events,
          one.alarms,
          one.pareto,
          one.baseline,
        ]),
    ],
    decisions: [
      ["decision", "count"],
      () => [
        ["retrain", result.decisions?.retrain],
        ["alert", result.decisions?.alert],
        ...held.map(([kind, count]) => [`hold: ${kind}`, count]),
      ],
    ],
    incidents: whole(list(result.incidents), ["id", "model", "opened", "closed", "decisions"]),
    models: whole(models, ["model", "versions", "predictions", "labels", "verdicts", "breached", "counts"]),
    unreadable: whole(list(result.unreadable?.places), ["place", "reason"]),
  };
}

function timelineRows() {
  return Object.entries(result.timeline ?? {}).flatMap(([model, parts]) =>
    Object.entries(parts).flatMap(([part, group]) =>
      list(group.features).flatMap((one) =>
        one.score.map((score, place) => [
          model,
          part,
          one.feature,
          one.test,
          one.limit_name,
          group.event[place],
          group.time[place],
          score,
          one.limit[place],
        ]),
      ),
    ),
  );
}

function distributionRows() {
  return list(result.evidence).flatMap((at) =>
    at.features.flatMap((one) =>
      ["reference", "window"].flatMap((of) =>
        list(one[of]?.share).map((share, place) => [
          at.alarm + 1,
          at.model,
          one.feature,
          of,
          one[of].edges?.[place],
          one[of].edges?.[place + 1],
          one[of].names?.[place],
          share,
        ]),
      ),
    ),
  );
}

const SOURCE = { distributions: "evidence", settings: "tried" };

function writeDownloads() {
  const known = Object.entries(sheets());
  const empty = (name) => !Object.keys(list(result[SOURCE[name] ?? name])).length || (name === "unreadable" && !result.unreadable.count);
  fill(
    "downloads-body",
    el(
      "p",
      { class: "muted" },
      "What this page shows is in the JSON file, the whole result of the replay; each CSV file is one table of it. Times are seconds since 1970 (UTC).",
    ),
    el(
      "div",
      { class: "buttons" },
      el(
        "button",
        {
          type: "button",
          class: "main",
          id: "save-json",
          onclick: () => keep("driftloop-replay.json", JSON.stringify(result), "application/json"),
        },
        "JSON",
      ),
      known.map(([name, [header, rows]]) =>
        el(
          "button",
          {
            type: "button",
            disabled: empty(name),
            id: `save-${name}`,
            onclick: () => keep(`driftloop-${name.replace("_", "-")}.csv`, csv(header, rows()), "text/csv"),
          },
          `${name.replace("_", " ")}.csv`,
        ),
      ),
    ),
  );
}
