"use strict";
// Values under the pointer, a finger or the arrow keys. All else on the page needs no script.
for (const plot of document.querySelectorAll(".plot")) {
  const figure = plot.closest("figure");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const said = figure.querySelector(".readout");
  const [across, down] = ["x", "y"].map((side) => plot.querySelector(`.cross.${side}`));
  const isMatrix = plot.dataset.kind === "matrix";
  const count = isMatrix ? data.count : data.x.length;
  if (!count) continue;
  const bytes = isMatrix ? Uint8Array.from(atob(data.values), (c) => c.charCodeAt(0)) : null;
  const values = isMatrix ? new Int16Array(bytes.buffer) : null;
  let column = 0, row = 0;

  const within = (index) => Math.min(count - 1, Math.max(0, index));
  const show = () => {
    plot.classList.add("read");
    if (isMatrix) {
      across.style.left = `${((column + 0.5) / count) * 100}%`;
      down.style.top = `${((row + 0.5) / count) * 100}%`;
      const value = values[row * count + column];
      const text = value === data.none ? "no value" : (value / data.full).toFixed(3);
      said.textContent = `${data.labels[row]} and ${data.labels[column]}: ${text}`;
    } else {
      across.style.left = `${data.x[column] * 100}%`;
      said.textContent = data.labels[column];
    }
  };
  const point = (event) => {
    const box = plot.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    if (isMatrix) {
      [column, row] = [within(Math.floor(x * count)), within(Math.floor(y * count))];
    } else {
      let best = 0;
      data.x.forEach((place, i) => { if (Math.abs(place - x) < Math.abs(data.x[best] - x)) best = i; });
      column = best;
    }
    show();
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("focus", show);
  plot.addEventListener("keydown", (event) => {
    const stride = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: [-stride, 0], ArrowRight: [stride, 0], Home: [-count, 0], End: [count, 0] };
    if (isMatrix) Object.assign(moves, { ArrowUp: [0, -stride], ArrowDown: [0, stride] });
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    [column, row] = [within(column + move[0]), within(row + move[1])];
    show();
  });
}
