const search = document.getElementById("search");
if (search) {
  search.hidden = false;
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase().trim();
    for (const rule of document.querySelectorAll("section.rule")) {
      const isNamed = rule.querySelector("h3").textContent.toLowerCase().includes(wanted);
      let shown = 0;
      for (const finding of rule.querySelectorAll(".finding")) {
        finding.hidden = !isNamed && !finding.textContent.toLowerCase().includes(wanted);
        shown += !finding.hidden;
      }
      for (const details of rule.querySelectorAll("details:has(.finding)")) details.open = wanted !== "" && shown > 0;
      rule.hidden = shown === 0;
      document.querySelector(`tr[data-rule="${rule.id}"]`).hidden = rule.hidden;
    }
  });
}
addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
