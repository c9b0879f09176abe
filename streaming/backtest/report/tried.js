// The settings tried: false alarms against delay, and the table.

const tried = list(result.tried).map((one, place) => ({ ...one, place }));
const sameSettings = (one, other) =>
  JSON.stringify(Object.entries(one ?? {}).sort()) === JSON.stringify(Object.entries(other ?? {}).sort());
const proposed = (one) => Boolean(result.proposal) && sameSettings(one.settings, result.proposal.settings);
const perMonth = tried.some((one) => typeof one.false_alarms?.per_30d === "number");
const rate = (one) => (perMonth ? one.false_alarms?.per_30d : one.false_alarms?.per_100k_events) ?? null;
const RATE = perMonth ? "False alarms per 30 days" : "False alarms per 100,000 events";

function writeTried() {
  if (!tried.length) {
    fill(
      "tried-body",
      el(
        "p",
        { class: "muted" },
        'No other settings were tried. As in --try "window.size=500,1000,2000", the replay takes the same history through each of them and compares.',
      ),
    );
    return;
  }
  const drawable = tried.filter((one) => rate(one) !== null && one.median_delay_events !== null);
  const left = tried.length - drawable.length;
  const div = drawable.length ? chart("False alarms against delay of each setting tried", () => makeTried(drawable)) : null;
  if (div) div.id = "tried-chart";
  const paths = [...new Set(tried.flatMap((one) => Object.keys(one.settings ?? {})))].sort();
  const tags = (one) =>
    [one.pareto && el("span", { class: "tag mark" }, "Pareto"), proposed(one) && el("span", { class: "tag good" }, "proposed")].filter(
      Boolean,
    );
  const value = (one, path) => (one.settings && path in one.settings ? one.settings[path] : null);
  const columns = [
    { title: "No.", of: (one) => one.place + 1, number: true },
    tried.some((one) => tags(one).length) && { title: "", show: tags, tags: true },
    ...(paths.length && paths.length <= 5
      ? paths.map((path) => ({
          title: path,
          of: (one) => value(one, path),
          show: (one) => (value(one, path) === null ? el("span", { class: "muted" }, "as configured") : settingText(value(one, path))),
          name: true,
        }))
      : [{ title: "Setting", of: (one) => one.label, show: (one) => one.label, text: true }]),
    { title: RATE, of: rate, show: (one) => shown(rate(one)), number: true },
    { title: "Found", of: (one) => one.found, show: (one) => shown(one.found), number: true },
    { title: "Missed", of: (one) => one.missed, show: (one) => shown(one.missed), number: true },
    { title: "Median delay, events", of: (one) => one.median_delay_events, show: (one) => shown(one.median_delay_events), number: true },
    { title: "Alarms", of: (one) => one.alarms, show: (one) => shown(one.alarms), number: true },
  ].filter(Boolean);
  const drawn = table(
    "Each setting over the same history; the Pareto front holds those of which no other is better in one thing and as good in the others",
    columns,
    tried,
    { chosen: (one) => proposed(one) },
  );
  drawn.id = "tried-table";
  fill(
    "tried-body",
    div &&
      el(
        "figure",
        {},
        div,
        el(
          "figcaption",
          {},
          "Down and to the left is better. The numbers are those of the table; the line is the Pareto front.",
          left ? ` ${many(left, "setting")} without a delay (no known drift found) ${left === 1 ? "is" : "are"} only in the table.` : "",
        ),
      ),
    !div &&
      el(
        "p",
        { class: "muted" },
        "No delay is known for any of them (no known drift was named, or none was found), so there is no picture of false alarms against delay.",
      ),
    drawn,
  );
}

const settingText = (value) => (typeof value === "string" ? value : typeof value === "number" ? number(value) : JSON.stringify(value));

// Settings that came out alike share a point: its first carries all their numbers.
function numbersAt(one, drawable) {
  const there = drawable.filter((other) => rate(other) === rate(one) && other.median_delay_events === one.median_delay_events);
  if (there[0] !== one) return "";
  const numbers = there.map((other) => String(other.place + 1));
  return numbers.length > 4 ? `${numbers.slice(0, 3).join(", ")} …` : numbers.join(", ");
}

function makeTried(drawable) {
  const tone = colours();
  const kinds = [
    ["others", (one) => !one.pareto, "circle-open", tone.muted],
    ["Pareto front", (one) => one.pareto, "circle", tone.accent],
  ];
  const texts = (group) => ({
    x: group.map(rate),
    y: group.map((one) => one.median_delay_events),
    text: group.map((one) => numbersAt(one, drawable)),
    customdata: group.map((one) => [plain(short(one.label || "as configured", 90)), number(one.found), number(one.missed), one.place + 1]),
  });
  const front = drawable.filter((one) => one.pareto).sort((a, b) => rate(a) - rate(b));
  const data = [
    {
      type: "scatter",
      mode: "lines",
      x: front.map(rate),
      y: front.map((one) => one.median_delay_events),
      line: { color: tone.accent, width: 1.5, dash: "dot" },
      hoverinfo: "skip",
      showlegend: false,
    },
  ];
  const sign = (name, symbol, color, size = 11) =>
    data.push({ type: "scatter", mode: "markers", name, x: [null], y: [null], marker: { symbol, size, color, line: { width: 2, color } } });
  for (const [name, belongs, symbol, color] of kinds) {
    const group = drawable.filter(belongs);
    data.push({
      type: "scatter",
      mode: "markers+text",
      showlegend: false,
      ...texts(group),
      textposition: "top center",
      marker: {
        symbol: group.map((one) => (one.baseline ? symbol.replace("circle", "square") : symbol)),
        size: 12,
        color,
        line: { width: 2, color },
      },
      hovertemplate:
        "<b>No. %{customdata[3]}</b> %{customdata[0]}<br>%{x:.3~g} false alarms, %{y:,} events late<br>found %{customdata[1]}, missed %{customdata[2]}<extra></extra>",
    });
  }
  const best = drawable.filter(proposed);
  data.push({
    type: "scatter",
    mode: "markers",
    showlegend: false,
    x: best.map(rate),
    y: best.map((one) => one.median_delay_events),
    marker: { symbol: "circle-open", size: 22, color: tone.good, line: { width: 2.5, color: tone.good } },
    hoverinfo: "skip",
  });
  for (const [name, , symbol, color] of kinds) sign(name, symbol, color);
  if (drawable.some((one) => one.baseline)) sign("as configured", "square-open", tone.text);
  if (best.length) sign("proposed", "circle-open", tone.good, 16);
  return {
    data,
    layout: layoutOf(380, {
      showlegend: true,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
      hovermode: "closest",
      xaxis: { title: { text: RATE }, rangemode: "tozero" },
      yaxis: { title: { text: "median delay, events" }, rangemode: "tozero" },
    }),
  };
}
