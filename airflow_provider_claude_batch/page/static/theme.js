// Light or dark, as Airflow has it; by itself the page follows the system.
const dark = matchMedia("(prefers-color-scheme: dark)");

function airflow() {
  try {
    return window.parent === window ? null : window.parent.document.documentElement;
  } catch {
    return null;
  }
}

function theme() {
  const host = airflow();
  const named = ["dark", "light"].find((name) => host?.classList.contains(name) || host?.dataset.theme === name);
  return named ?? (dark.matches ? "dark" : "light");
}

export function followTheme() {
  const apply = () => {
    document.documentElement.dataset.theme = theme();
  };
  apply();
  dark.addEventListener("change", apply);
  const host = airflow();
  if (host) new MutationObserver(apply).observe(host, { attributes: true, attributeFilter: ["class", "data-theme"] });
}
