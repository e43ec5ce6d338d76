// Hover and keyboard for the marks of figures: Tab reaches a figure, arrows go from mark to mark.
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const said = document.getElementById("said");
  const texts = new WeakMap();

  const hide = () => { tip.hidden = true; };

  const place = (mark) => {
    const box = mark.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const widest = document.documentElement.clientWidth - own.width - 8;
    const left = Math.max(8, Math.min(box.left + box.width / 2 - own.width / 2, widest));
    const above = box.top - own.height - 8;
    const top = above > 4 ? above : box.bottom + 8;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${top + window.scrollY}px`;
  };

  const show = (mark) => {
    tip.textContent = texts.get(mark);
    tip.hidden = false;
    tip.style.left = "0px";  // its width is taken where nothing squeezes it
    place(mark);
  };

  const nearest = (marks, from, sign) => {
    const middle = (box) => [box.left + box.width / 2, box.top + box.height / 2];
    const [x, y] = middle(from.getBoundingClientRect());
    let found = null, least = Infinity;
    for (const mark of marks) {
      const [markX, markY] = middle(mark.getBoundingClientRect());
      const along = sign * (markY - y);
      const cost = along + 3 * Math.abs(markX - x);
      if (along > 0.5 && cost < least) { found = mark; least = cost; }
    }
    return found;
  };

  for (const svg of document.querySelectorAll("figure svg")) {
    const marks = [...svg.querySelectorAll(".mark")];
    marks.forEach((mark, number) => {
      const title = mark.querySelector("title");
      const text = title.textContent;
      title.remove();
      texts.set(mark, text);
      mark.setAttribute("aria-label", text.split("\n")[0]);
      mark.setAttribute("tabindex", number ? "-1" : "0");
      mark.addEventListener("mouseenter", () => show(mark));
      mark.addEventListener("mouseleave", () => {
        if (svg.contains(document.activeElement)) show(document.activeElement); else hide();
      });
      mark.addEventListener("focus", () => {
        for (const other of marks) other.setAttribute("tabindex", other === mark ? "0" : "-1");
        mark.scrollIntoView({ block: "nearest", inline: "nearest" });
        show(mark);
        said.textContent = text.split("\n").slice(1).join("; ");
      });
      mark.addEventListener("blur", hide);
      mark.addEventListener("keydown", (event) => {
        const next = {
          ArrowRight: () => marks[number + 1],
          ArrowLeft: () => marks[number - 1],
          ArrowDown: () => nearest(marks, mark, 1),
          ArrowUp: () => nearest(marks, mark, -1),
          Home: () => marks[0],
          End: () => marks[marks.length - 1],
        }[event.key];
        if (event.ctrlKey || event.altKey || event.metaKey) return;
        if (!next) return;
        event.preventDefault();
        const found = next();
        if (found) found.focus({ preventScroll: true });
      });
    });
  }

  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  for (const box of document.querySelectorAll(".wide")) {
    if (!box.querySelector(".mark")) {
      const set = () => {
        const isCut = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
        if (isCut) box.setAttribute("tabindex", "0"); else box.removeAttribute("tabindex");
      };
      set();
      window.addEventListener("resize", set);
      const details = box.closest("details");
      if (details) details.addEventListener("toggle", set);
    }
  }
})();
