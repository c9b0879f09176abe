// What all charts have in common: colours for light, dark and paper, Plotly's layout, drawing anew when the colours change.

const DIGITS = [...Array(10).keys()];
const DASHES = ["solid", "dot", "dash", "dashdot", "longdash"];
const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toggleSpikelines"] };
const SMALL = { ...CONFIG, displayModeBar: false };

const dark = matchMedia("(prefers-color-scheme: dark)");
let onPaper = false;

// The style sheet's colours of the moment.
function colours() {
  const style = getComputedStyle(document.documentElement);
  const told = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["text", "muted", "line", "card", "bad", "good", "accent", "back"];
  return { ...Object.fromEntries(names.map((name) => [name, told(name)])), series: DIGITS.map((digit) => told(`series-${digit}`)) };
}

const charts = new Map();

// Plotly reads <b>, <br>, <a> and %{...} in texts; names of the data are shown as they are.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const short = (text, most = 28) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// `make` gives {data, layout} in the colours of the moment; `after` is called once, with Plotly's element.
function chart(label, make, { after = null, config = CONFIG } = {}) {
  const div = el("div", { class: "chart", role: "img", "aria-label": label });
  charts.set(div, { make, after, config });
  return div;
}

function draw(div) {
  const one = charts.get(div);
  const { data, layout } = one.make();
  Plotly.react(div, data, layout, one.config);
  // The label says what it is; what Plotly draws has no names of its own.
  for (const child of [...div.children, byId("js-plotly-tester")]) child?.setAttribute("aria-hidden", "true");
  if (one.after) one.after(div);
  one.after = null;
}

function drawAll() {
  for (const div of charts.keys()) {
    if (div.isConnected) draw(div);
    else charts.delete(div);
  }
}

function layoutOf(height, more) {
  const tone = colours();
  const { xaxis, yaxis, ...others } = more;
  const axis = { gridcolor: tone.line, zerolinecolor: tone.line, linecolor: tone.line, automargin: true };
  return {
    height,
    // Paper has no window to take the width from.
    width: onPaper ? (more.onPaper ?? 680) : undefined,
    autosize: !onPaper,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: tone.text },
    margin: { l: 56, r: 12, t: 14, b: xaxis?.title?.text ? 52 : 34 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: tone.muted, activecolor: tone.accent },
    showlegend: false,
    hoverlabel: { bgcolor: tone.card, bordercolor: tone.muted, font: { color: tone.text }, align: "left" },
    ...others,
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
  };
}

function watchColours() {
  dark.addEventListener("change", drawAll);
  // Printing takes the style sheet's colours for paper only after this event.
  const paper = (on) => () => {
    onPaper = on;
    document.documentElement.classList.toggle("paper", on);
    drawAll();
  };
  addEventListener("beforeprint", paper(true));
  addEventListener("afterprint", paper(false));
}
