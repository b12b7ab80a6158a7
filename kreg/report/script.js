
"use strict";
(() => {
  // Milliseconds for which flicker shows each image: well below three flashes a second.
  const shown = 700;
  const page = document.documentElement;
  const swipe = document.getElementById("swipe");
  const flicker = document.getElementById("flicker");
  const slice = document.getElementById("slice");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  let timer = null;

  const cut = () => {
    page.style.setProperty("--cut", `${swipe.value}%`);
    swipe.setAttribute("aria-valuetext", `${swipe.value} % fixed image`);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    page.classList.remove("flickering", "shows-fixed");
    flicker.setAttribute("aria-pressed", "false");
  };
  swipe.addEventListener("input", () => { stop(); cut(); });

  flicker.addEventListener("click", () => {
    if (flicker.getAttribute("aria-pressed") === "true") { stop(); return; }
    page.classList.add("flickering", "shows-fixed");
    flicker.setAttribute("aria-pressed", "true");
    if (calm.matches) {
      // Nothing moves by itself: pressed is the fixed image, released the moving one.
      swipe.value = 0;
      cut();
    } else {
      timer = setInterval(() => page.classList.toggle("shows-fixed"), shown);
    }
  });

  for (const radio of document.querySelectorAll("input[name=state]")) {
    radio.addEventListener("change", () => {
      for (const image of document.querySelectorAll(".over")) {
        image.hidden = image.dataset.state !== radio.value;
      }
    });
  }

  for (const stage of document.querySelectorAll(".stage")) {
    const follow = (event) => {
      const box = stage.getBoundingClientRect();
      swipe.value = 100 * (event.clientX - box.left) / box.width;
      stop();
      cut();
    };
    stage.addEventListener("dragstart", (event) => event.preventDefault());
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId);
      follow(event);
    });
    stage.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  }

  if (slice) {
    slice.addEventListener("input", () => {
      for (const place of document.querySelectorAll(".place")) {
        place.hidden = place.dataset.place !== String(slice.value - 1);
      }
      slice.setAttribute("aria-valuetext", `${slice.value} of ${slice.max}`);
    });
    slice.dispatchEvent(new Event("input"));
  }
  cut();
})();
