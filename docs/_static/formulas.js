// Sets every formula of the page; one that cannot be read stands in red, and the tests of the site fail on it.
for (const place of document.querySelectorAll(".formula")) {
  katex.render(place.textContent, place, {
    displayMode: place.classList.contains("displayed"),
    throwOnError: false,
    strict: "ignore",
  });
}

// Formulas have changed the page's height: back to the place that the address names, once their fonts are here, too.
const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
if (target) {
  target.scrollIntoView({ behavior: "instant" });
  document.fonts.ready.then(() => target.scrollIntoView({ behavior: "instant" }));
}
