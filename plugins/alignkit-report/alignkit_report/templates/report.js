"use strict";
// Sorting of tables; search, order and paging of samples. Without it a page shows everything, in its first order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numbers = head.classList.contains("number");
      const was = head.getAttribute("aria-sort");
      const up = was ? was === "descending" : !numbers;
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[place];
        return numbers ? cell.dataset.order : cell.textContent.trim();
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        const order = numbers ? x - y : x.localeCompare(y);
        return up ? order : -order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

const box = document.getElementById("samples-list");
if (box) {
  const STEP = 8;
  const articles = [...box.children].map((node, place) => ({
    node, place, text: node.textContent.toLowerCase(), spread: Number(node.dataset.spread),
  }));
  const [search, order, said, more] = ["search", "order", "found", "more"].map((id) => document.getElementById(id));
  const ORDERS = {
    spread: (a, b) => b.spread - a.spread || a.place - b.place,
    agree: (a, b) => a.spread - b.spread || a.place - b.place,
    prompt: (a, b) => a.text.localeCompare(b.text),
  };
  let room = STEP;
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = articles.filter(({ text }) => words.every((word) => text.includes(word)));
    fits.sort(ORDERS[order.value]);
    for (const { node } of articles) node.hidden = true;
    fits.slice(0, room).forEach(({ node }) => { node.hidden = false; });
    box.append(...fits.map(({ node }) => node));
    said.textContent = `${fits.length} of ${articles.length} prompts`;
    more.hidden = fits.length <= room;
  };
  search.addEventListener("input", () => { room = STEP; show(); });
  order.addEventListener("change", () => { room = STEP; show(); });
  more.addEventListener("click", () => { room += 2 * STEP; show(); });
  document.getElementById("tools").hidden = false;
  show();
}
