// The jobs page: two or three ticked jobs can be compared.
"use strict";

(() => {
  const button = document.querySelector("[data-compare]");
  const count = document.querySelector("[data-compare-count]");

  function showPicked() {
    const picked = document.querySelectorAll(".pick:checked").length;
    button.disabled = picked < 2 || picked > 3;
    count.textContent = picked ? ` (${picked})` : "";
    for (const box of document.querySelectorAll(".pick")) box.disabled = picked >= 3 && !box.checked;
  }

  document.addEventListener("change", showPicked);
  document.addEventListener("htmx:afterSettle", showPicked);
  // Going back, a browser ticks the boxes again without saying so.
  window.addEventListener("pageshow", showPicked);
})();
