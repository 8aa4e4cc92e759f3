
"use strict";
(() => {
  const source = document.getElementById("drift");
  if (!source) return;
  const { steps, series, confidence } = JSON.parse(source.textContent);
  const find = (id) => document.getElementById(id);
  const [plot, select, slider, difference, readout] = ["plot", "series", "step", "difference", "readout"].map(find);
  const rows = [...document.querySelectorAll("tr[data-series]")];
  const margin = { left: 64, right: 22, top: 12, bottom: 42 };
  const last = steps.length - 1;
  let x = () => 0;

  const known = (values) => values.filter((value) => value !== null);
  const shown = (value) => (value === null ? "none" : value.toPrecision(4));

  function add(name, attributes, text) {
    const node = document.createElementNS(plot.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return plot.appendChild(node);
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k += 1) found.push(k * step);
    return found;
  }

  function lines() {
    const one = series[select.selectedIndex];
    if (!difference.checked) return one;
    const less = (values) => values.map((v, k) => (v === null || one.predicted[k] === null ? null : v - one.predicted[k]));
    return Object.fromEntries(["predicted", "measured", "lower", "upper"].map((name) => [name, less(one[name])]));
  }

  function draw() {
    const width = plot.clientWidth;
    const height = plot.clientHeight;
    const one = lines();
    const all = known([...one.predicted, ...one.lower, ...one.upper]);
    if (!width || !all.length) return;
    let [low, high] = [Math.min(...all), Math.max(...all)];
    if (low === high) [low, high] = [low - 1, high + 1];
    [low, high] = [low - 0.05 * (high - low), high + 0.05 * (high - low)];
    const span = steps[last] - steps[0] || 1;
    x = (step) => margin.left + ((step - steps[0]) / span) * (width - margin.left - margin.right);
    const y = (value) => margin.top + ((high - value) / (high - low)) * (height - margin.top - margin.bottom);
    plot.replaceChildren();
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const floor = height - margin.bottom;
    const power = Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high))));
    const unit = Math.abs(power) > 1 ? power : 0;
    for (const value of ticks(low, high, 5)) {
      add("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y(value), y2: y(value) });
      const text = value === 0 ? "0" : String(Number((value / 10 ** unit).toPrecision(3)));
      add("text", { x: margin.left - 6, y: y(value) + 4, "text-anchor": "end" }, text);
    }
    for (const value of ticks(steps[0], steps[last], width < 500 ? 4 : 8)) {
      add("text", { x: x(value), y: floor + 16, "text-anchor": "middle" }, String(value));
    }
    add("path", { class: "axis", d: `M${margin.left} ${margin.top}V${floor}H${width - margin.right}` });
    const label = (difference.checked ? "measured less predicted" : "change of charge") + (unit ? ` [1e${unit}]` : "");
    const middle = margin.top + (floor - margin.top) / 2;
    add("text", { x: (margin.left + width) / 2, y: height - 8, "text-anchor": "middle" }, "updates");
    add("text", { transform: `translate(12 ${middle}) rotate(-90)`, "text-anchor": "middle" }, label);
    const points = steps.map((step, k) => (one.predicted[k] === null ? null : `${x(step)} ${y(one.predicted[k])}`));
    if (known(points).length) add("path", { class: "predicted", d: `M${known(points).join("L")}` });
    const every = Math.max(1, Math.ceil(steps.length / (width / 24)));
    steps.forEach((step, k) => {
      if ((last - k) % every || one.measured[k] === null) return;
      if (one.lower[k] !== null && one.upper[k] !== null) {
        add("line", { class: "measured", x1: x(step), x2: x(step), y1: y(one.lower[k]), y2: y(one.upper[k]) });
      }
      add("circle", { class: "measured", cx: x(step), cy: y(one.measured[k]), r: 3 });
    });
    const at = steps[slider.value];
    add("line", { class: "chosen", x1: x(at), x2: x(at), y1: margin.top, y2: floor });
    const k = Number(slider.value);
    const interval = `${confidence}: ${shown(one.lower[k])} to ${shown(one.upper[k])}`;
    const what = difference.checked ? "measured less predicted" : "measured";
    const predicted = difference.checked ? "" : `, predicted ${shown(one.predicted[k])}`;
    readout.textContent = `Update ${at}: ${what} ${shown(one.measured[k])} (${interval})${predicted}`;
  }

  function choose(number) {
    select.selectedIndex = (number + series.length) % series.length;
    for (const row of rows) row.classList.toggle("chosen", Number(row.dataset.series) === select.selectedIndex);
    draw();
  }

  for (const one of series) select.add(new Option(one.label));
  slider.max = last;
  slider.value = last;
  find("explorer").hidden = false;
  select.addEventListener("change", () => choose(select.selectedIndex));
  find("previous").addEventListener("click", () => choose(select.selectedIndex - 1));
  find("next").addEventListener("click", () => choose(select.selectedIndex + 1));
  difference.addEventListener("change", draw);
  slider.addEventListener("input", draw);
  plot.addEventListener("pointermove", (event) => {
    const at = event.clientX - plot.getBoundingClientRect().left;
    const distance = (k) => Math.abs(x(steps[k]) - at);
    slider.value = steps.reduce((best, _, k) => (distance(k) < distance(best) ? k : best), 0);
    draw();
  });
  for (const row of rows) {
    row.tabIndex = 0;
    const pick = () => {
      choose(Number(row.dataset.series));
      find("explorer").scrollIntoView({ block: "nearest" });
    };
    row.addEventListener("click", pick);
    row.addEventListener("keydown", (event) => event.key === "Enter" && pick());
  }
  new ResizeObserver(draw).observe(plot);
  choose(0);
})();
