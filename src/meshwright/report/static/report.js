"use strict";
// Draws the charts of the page from the JSON in #chart-data. On success the
// root element's data-charts holds how many; errors are listed in #errors.

(() => {
  const root = document.documentElement;
  const pending = [];

  function report(message) {
    const list = document.getElementById("errors");
    if (!list) {
      pending.push(message);
      return;
    }
    const item = document.createElement("li");
    item.textContent = message;
    list.append(item);
    list.hidden = false;
  }

  window.addEventListener("error", (event) => report(event.message));
  window.addEventListener("unhandledrejection", (event) => report(String(event.reason)));
  document.addEventListener("securitypolicyviolation", (event) =>
    report(`${event.violatedDirective} stopped ${event.blockedURI}`),
  );

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const veiled = (hex, alpha) => hex + Math.round(255 * alpha).toString(16).padStart(2, "0");

  function significant(number) {
    const size = Math.abs(number);
    const digits = size >= 100 ? 0 : size >= 10 ? 1 : 2;
    return String(Number(number.toFixed(digits)));
  }

  function bytes(number) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = 0;
    while (Math.abs(number) >= 1024 && power < units.length - 1) {
      number /= 1024;
      power += 1;
    }
    return `${significant(number)} ${units[power]}`;
  }

  function duration(seconds) {
    if (seconds === 0) return "0";
    if (Math.abs(seconds) >= 1) return `${significant(seconds)} s`;
    if (Math.abs(seconds) >= 1e-3) return `${significant(seconds * 1e3)} ms`;
    return `${significant(seconds * 1e6)} µs`;
  }

  // A round step in powers of two, so that an axis of bytes reads 0, 64, 128 MiB.
  function byteStep(most) {
    return most > 0 ? 2 ** Math.ceil(Math.log2(most / 6)) : 1;
  }

  function axis(title, ticks = {}, more = {}) {
    return {
      type: "linear",
      title: { display: true, text: title, color: colour("muted") },
      ticks: { color: colour("muted"), ...ticks },
      grid: { color: colour("line"), drawTicks: false },
      border: { display: false },
      ...more,
    };
  }

  function options(x, y, tooltip) {
    return {
      animation: false,
      responsive: true,
      maintainAspectRatio: false,
      normalized: true,
      interaction: { mode: "index", intersect: false, axis: "x" },
      scales: { x, y },
      plugins: {
        legend: {
          align: "start",
          labels: {
            color: colour("text"),
            usePointStyle: true,
            pointStyleWidth: 18,
            boxHeight: 8,
            padding: 14,
          },
        },
        tooltip: { callbacks: tooltip },
      },
    };
  }

  function drawLoss(canvas, data) {
    const datasets = [
      {
        label: "this plan",
        data: data.losses,
        borderColor: colour("series-0"),
        backgroundColor: colour("series-0"),
        borderWidth: 2,
        pointRadius: data.losses.length > 1 ? 0 : 3,
        pointStyle: data.losses.length > 1 ? "line" : "circle",
      },
    ];
    if (data.reference.length) {
      // Wide and pale, so that it shows around a line that lies exactly on it.
      datasets.push({
        label: "one device",
        data: data.reference,
        borderColor: veiled(colour("series-1"), 0.45),
        backgroundColor: veiled(colour("series-1"), 0.45),
        borderWidth: 8,
        borderCapStyle: "round",
        pointRadius: 0,
        pointStyle: "line",
      });
    }
    const tooltip = {
      title: (items) => `step ${items[0].parsed.x}`,
      label: (item) => ` ${item.dataset.label}: ${item.parsed.y.toFixed(5)}`,
    };
    const x = axis("step", { precision: 0, maxRotation: 0 });
    return new Chart(canvas, {
      type: "line",
      data: { datasets },
      options: options(x, axis("loss"), tooltip),
    });
  }

  function memoryDatasets(memory) {
    const stacked = memory.parts.map((name, part) => ({
      label: name,
      data: memory.predicted.map((point) => ({ x: point.x, y: point.parts[part], at: point.label })),
      borderColor: colour(`series-${part}`),
      backgroundColor: veiled(colour(`series-${part}`), 0.55),
      borderWidth: 1,
      fill: part === 0 ? "origin" : "-1",
      stack: "predicted",
      pointRadius: 0,
      pointStyle: "rectRounded",
    }));
    const plain = (points) => points.map((point) => ({ x: point.x, y: point.y, at: point.label }));
    const line = (label, points, ink, more) => ({
      label,
      data: points,
      borderColor: ink,
      backgroundColor: ink,
      borderWidth: 2,
      pointRadius: 0,
      pointStyle: "line",
      fill: false,
      stack: label,
      ...more,
    });
    const hasParts = stacked.some((set) => set.data.some((point) => point.y));
    const sets = hasParts ? stacked.filter((set) => set.data.some((point) => point.y)) : [];
    if (!hasParts && memory.predicted.length) {
      sets.push(line("predicted", plain(memory.predicted), colour("series-0")));
    }
    if (memory.measured.length) {
      sets.push(line("measured", plain(memory.measured), colour("text"), { borderDash: [5, 3] }));
    }
    const points = memory.predicted.concat(memory.measured);
    const peak = Math.max(...points.map((point) => point.y));
    if (memory.limit !== null && memory.limit < 4 * peak) {
      const ends = [Math.min(...points.map((p) => p.x)), Math.max(...points.map((p) => p.x))];
      const limit = ends.map((x) => ({ x, y: memory.limit, at: "" }));
      sets.push(line("limit", limit, colour("poor"), { borderWidth: 1.5, borderDash: [2, 3] }));
    }
    return { sets, peak };
  }

  function drawMemory(canvas, data) {
    const memory = data.memory;
    const { sets, peak } = memoryDatasets(memory);
    const tooltip = {
      title: (items) => items[0].raw.at || "limit",
      label: (item) => ` ${item.dataset.label}: ${bytes(item.parsed.y)}`,
    };
    const x = memory.timed
      ? axis("time in the step", { callback: duration, maxRotation: 0, includeBounds: false })
      : axis("position in the step", { callback: (value) => `${value} %`, maxRotation: 0 });
    const last = Math.max(...memory.predicted.concat(memory.measured).map((point) => point.x));
    const y = axis("in use", { callback: bytes, stepSize: byteStep(peak) }, { stacked: true, min: 0 });
    return new Chart(canvas, {
      type: "line",
      data: { datasets: sets },
      options: options({ ...x, min: 0, max: last || undefined }, y, tooltip),
    });
  }

  function drawFront(canvas, data) {
    const { front, behind, unfit, auto, limit } = data.front;
    const points = (label, found, ink, more) => ({
      label,
      data: found,
      borderColor: ink,
      backgroundColor: ink,
      pointRadius: 5,
      pointHoverRadius: 7,
      showLine: false,
      ...more,
    });
    const sets = [
      points("front", front, colour("series-2"), { showLine: true, borderWidth: 2, pointStyle: "circle" }),
      points("beaten by another", behind, colour("series-7"), { pointStyle: "circle" }),
      points("does not fit", unfit, colour("poor"), { pointStyle: "crossRot", borderWidth: 2 }),
      points("auto", auto, colour("series-0"), { pointStyle: "rectRot", pointRadius: 9, pointHoverRadius: 11 }),
    ].filter((set) => set.data.length);
    const all = front.concat(behind, unfit);
    const highest = Math.max(...all.map((point) => point.y));
    const widest = Math.max(...all.map((point) => point.x));
    if (limit < 3 * widest) {
      const ends = [0, highest].map((y) => ({ x: limit, y, name: "memory of a device" }));
      const more = { showLine: true, pointRadius: 0, pointStyle: "line", borderWidth: 1.5, borderDash: [2, 3] };
      sets.push(points("memory of a device", ends, colour("poor"), more));
    }
    const tooltip = {
      title: (items) => items[0].raw.name,
      label: (item) => ` ${duration(item.parsed.y)}, ${bytes(item.parsed.x)}`,
    };
    const x = axis("peak memory of a device", { callback: bytes, stepSize: byteStep(widest) }, { min: 0 });
    const y = axis("step time", { callback: duration }, { min: 0 });
    const base = options(x, y, tooltip);
    base.interaction = { mode: "nearest", intersect: false };
    return new Chart(canvas, { type: "scatter", data: { datasets: sets }, options: base });
  }

  const drawers = { loss: drawLoss, memory: drawMemory, front: drawFront };
  let charts = [];

  function draw() {
    const data = JSON.parse(document.getElementById("chart-data").textContent);
    charts.forEach((chart) => chart.destroy());
    charts = [];
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    for (const [id, drawer] of Object.entries(drawers)) {
      const canvas = document.getElementById(id);
      if (canvas) charts.push(drawer(canvas, data));
    }
    root.dataset.charts = String(charts.length);
  }

  document.addEventListener("DOMContentLoaded", () => {
    pending.forEach(report);
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  });
})();
