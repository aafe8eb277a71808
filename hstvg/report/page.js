// Comfort only: the page reads the same without it.
if (matchMedia("(prefers-reduced-motion: reduce)").matches)
  for (const video of document.querySelectorAll("video")) { video.autoplay = false; video.pause(); }

// The three films of a row start together, so that they can be compared.
for (const row of document.querySelectorAll(".triple")) {
  const films = [...row.querySelectorAll("video")];
  films[0]?.addEventListener("seeked", () => {
    if (films[0].currentTime < 0.1) for (const film of films.slice(1)) film.currentTime = 0;
  });
}

// Under the pointer a chart shows the step and the value instead of the last value.
for (const svg of document.querySelectorAll("svg[data-points]")) {
  const points = JSON.parse(svg.dataset.points), steps = JSON.parse(svg.dataset.steps);
  const cursor = svg.querySelector(".cursor");
  const shown = svg.parentElement.querySelector(".chart-value");
  const place = (x) => { cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let best = 0;
    for (let i = 1; i < points.length; i++)
      if (Math.abs(points[i][0] - x) < Math.abs(points[best][0] - x)) best = i;
    place(points[best][0]);
    shown.textContent = `step ${steps[best]}: ${Number(points[best][1].toPrecision(4))}`;
  });
  svg.addEventListener("pointerleave", () => { place(-9); shown.textContent = shown.dataset.rest; });
}
