"use strict";
// The theme is the reader's choice where there is one, else the system's.
const KEPT = "readalong-theme";

function kept() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

function keep(theme) {
  try {
    localStorage.setItem(KEPT, theme);
  } catch {
    // Where nothing may be kept, the choice lasts as long as the page.
  }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

if (["light", "dark"].includes(kept())) {
  document.documentElement.dataset.theme = kept();
}

document.addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  const label = () => (button.textContent = isDark() ? "Light theme" : "Dark theme");
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    keep(theme);
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
  button.hidden = false;
  // On a wide screen the table of contents stands beside the text and is never in the way.
  const wide = matchMedia("(min-width: 68rem)");
  for (const contents of document.querySelectorAll("details.toc")) {
    contents.open = wide.matches;
    wide.addEventListener("change", () => (contents.open = wide.matches));
  }
});

// Paper shows no notes on hover and opens nothing: what is folded, but for the code, is printed.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not(.code, .toc)").forEach((part) => (part.open = true));
});
