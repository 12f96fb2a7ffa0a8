// Tables are sorted by a column; the rows of a group, which are one tbody, stay together.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (body, column) => body.rows[0].cells[column].dataset.v ?? body.rows[0].cells[column].textContent.trim();
  const sort = (head, column) => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const order = (one, other) => {
      const a = value(one, column), b = value(other, column);
      if (a === "" || b === "") return (a === "") - (b === "");
      const numbers = !isNaN(a) && !isNaN(b);
      return (up ? 1 : -1) * (numbers ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    };
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    table.append(...[...table.tBodies].sort(order));
  };
  heads.forEach((head, column) => {
    if (head.matches(".plot")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head, column));
    head.append(button);
  });
}
