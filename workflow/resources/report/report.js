"use strict";
// Charts and answers of the page. Data are in <script type="application/json">; text from models is
// only ever set as text.
(async () => {
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  // A column with repeated texts holds each text once, and an index per row.
  const charted = (id) => {
    const { spec, columns } = data("data-" + id);
    const whole = ([name, column]) => [name, column.names ? column.at.map((i) => column.names[i]) : column];
    return { spec, columns: Object.fromEntries(Object.entries(columns).map(whole)) };
  };
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const save = (name, type, text) => {
    const link = make("a", "", { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  // A chart uses the available width; panels of a facet wrap to it.
  const narrow = (figure) => figure.clientWidth < 480;
  const side = (figure) => (narrow(figure) ? 105 : 165);
  const panels = (figure) => {
    const names = narrow(figure) ? 95 : 145;
    return Math.max(1, Math.floor((figure.querySelector(".canvas").clientWidth - names) / (side(figure) + 20)));
  };
  const rowsOf = (columns) => {
    const [names, values] = [Object.keys(columns), Object.values(columns)];
    return (values[0] || []).map((_, i) => Object.fromEntries(names.map((name, j) => [name, values[j][i]])));
  };
  const quoted = (value) => /[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  // Names of columns that only position a mark start with an underscore.
  const csvOf = (columns) => {
    const names = Object.keys(columns).filter((name) => !name.startsWith("_"));
    const lines = rowsOf(columns).map((row) => names.map((name) => row[name]));
    return [names, ...lines].map((line) => line.map((v) => quoted(String(v ?? ""))).join(",") + "\n").join("");
  };
  const fitted = (figure, { spec, columns }) => {
    const fit = { ...spec, data: { values: rowsOf(columns) } };
    if (spec.facet) {
      fit.columns = panels(figure);
      fit.spec = { ...spec.spec, width: side(figure), height: side(figure) };
    }
    const { config } = spec;
    const place = 7 * (spec.usermeta?.letters ?? 30) + 30;
    const legend = { ...config.legend, columns: Math.max(1, Math.min(4, Math.floor(figure.clientWidth / place))) };
    fit.config = { ...config, legend };
    if (narrow(figure)) {
      fit.config = {
        ...config,
        legend,
        axis: { ...config.axis, labelFontSize: spec.facet ? 8 : 10, labelLimit: 250 },
        axisX: { titleAnchor: "end" },
        axisQuantitative: { tickCount: 4 },
      };
      // Long names of rows go above their marks, not next to them.
      const above = spec.usermeta?.above;
      if (above) {
        const bare = ({ y, ...rest }) => ({ ...rest, ...(y && { y: { ...y, axis: null } }) });
        const { y } = spec.layer.map((layer) => layer.encoding).find((encoding) => encoding.y);
        const named = { x: { value: 0 }, y: { ...y, axis: null }, text: { field: above } };
        fit.layer = [
          ...spec.layer.map((layer) => ({ ...layer, encoding: bare(layer.encoding) })),
          { mark: { type: "text", align: "left", dy: -11, fontSize: 10 }, encoding: named },
        ];
      }
    }
    return fit;
  };
  const draw = async (figure, chosen = {}) => {
    const given = charted(figure.id);
    const canvas = figure.querySelector(".canvas");
    const controls = figure.querySelector(".controls");
    const fresh = make("div", "", { class: "vega" });
    const columns = panels(figure);
    const holder = make("div");
    canvas.append(fresh);
    let result;
    try {
      result = await vegaEmbed(fresh, fitted(figure, given), {
        actions: false, ast: true, bind: holder, mode: "vega-lite", renderer: "svg",
        tooltip: { theme: dark.matches ? "dark" : "light" },
      });
    } catch (error) {
      fresh.remove(); // the figure drawn ahead of time stays
      console.error(figure.id, error);
      return;
    }
    for (const [name, value] of Object.entries(chosen)) result.view.signal(name, value);
    await result.view.runAsync();
    canvas.replaceChildren(fresh);
    controls.replaceChildren(...holder.childNodes);
    const names = (given.spec.params || []).filter((p) => p.bind).map((p) => p.name);
    figure.chart = { view: result.view, finalize: result.finalize, names, columns, facet: !!given.spec.facet };
  };
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  for (const figure of figures) {
    await draw(figure);
    const buttons = figure.querySelector(".saves");
    const csv = make("button", "CSV", { type: "button", "aria-label": "Download the numbers as CSV" });
    csv.addEventListener("click", () => save(figure.id + ".csv", "text/csv", csvOf(charted(figure.id).columns)));
    const svg = make("button", "SVG", { type: "button", "aria-label": "Download the chart as shown, as SVG" });
    svg.addEventListener("click", async () => {
      // Outside the page its colour variables are undefined: a file uses their default values.
      const shown = figure.chart && (await figure.chart.view.toSVG());
      if (shown) save(figure.id + ".svg", "image/svg+xml", shown.replaceAll(/var\(--\w+, (#\w+)\)/g, "$1"));
    });
    buttons.replaceChildren(csv, svg);
  }
  let waiting;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      for (const figure of figures) {
        if (!figure.chart?.facet || figure.chart.columns === panels(figure)) continue;
        const { view, names, finalize } = figure.chart;
        const chosen = Object.fromEntries(names.map((name) => [name, view.signal(name)]));
        finalize();
        await draw(figure, chosen);
      }
    }, 200);
  });

  // The browser of answers.
  const browser = document.getElementById("answer-browser");
  if (browser) {
    const { chain, persona, question, rows } = data("answers-data");
    // A regular expression: lower case can have another length (İ), and a letter two Unicode compositions.
    const literal = browser.dataset.marker.normalize().replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
    const marker = new RegExp(`(${literal})`, "giu");
    const form = browser.querySelector("form");
    const list = browser.querySelector("ol");
    const count = browser.querySelector("[aria-live]");
    const more = browser.querySelector(".more");
    const fill = (name, options) => form.elements[name].append(...options.map((o, i) => make("option", o, { value: i })));
    fill("chain", chain);
    fill("persona", persona);
    const marked = (text) => {
      const shown = make("p", "", { class: "text" });
      text.normalize().split(marker).forEach((part, i) => shown.append(i % 2 ? make("mark", part) : part));
      return shown;
    };
    const entry = ([m, p, q, hit, text]) => {
      const item = make("li");
      const head = make("p", "", { class: "soft" });
      head.append(make("code", chain[m]), " · ", make("b", persona[p].replaceAll("_", " ")), hit ? " · says the marker" : " · no marker");
      item.append(head, make("p", question[q], { class: "asked" }), marked(text));
      return item;
    };
    const say = (number) => number.toLocaleString("en");
    let found = [];
    let shown = 0;
    const page = () => {
      const next = found.slice(shown, shown + 10);
      list.append(...next.map(entry));
      shown += next.length;
      count.textContent = `${say(found.length)} of ${say(rows.length)} answers; ${say(shown)} shown`;
      more.hidden = shown >= found.length;
    };
    const filter = () => {
      const { chain, persona: who, hit, text } = Object.fromEntries(new FormData(form));
      const wanted = text.toLowerCase();
      found = rows.filter((row) =>
        (chain === "" || row[0] === +chain) && (who === "" || row[1] === +who) && (hit === "" || row[3] === +hit) &&
        (!wanted || row[4].toLowerCase().includes(wanted) || question[row[2]].toLowerCase().includes(wanted)));
      shown = 0;
      list.replaceChildren();
      page();
    };
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", page);
    browser.hidden = false;
    filter();
  }

  // Print shows folded parts, except long tables, whose file it names.
  window.addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details:not([open]):not(:has(> summary[data-file]))")) {
      fold.open = true;
      fold.dataset.folded = "";
    }
  });
  window.addEventListener("afterprint", () => {
    for (const fold of document.querySelectorAll("details[data-folded]")) {
      fold.open = false;
      delete fold.dataset.folded;
    }
  });
  document.documentElement.dataset.ready = "yes";
})();
