// Groups of duplicates; an image opens beside the one of its group that is kept.
const opened = data.groups.flatMap((group) => group.images.filter((image) => image !== group.kept).map((image) => {
  const reasons = group.pairs.filter(([one, other]) => one === image || other === image);
  const direct = reasons.find(([one, other]) => one === group.kept || other === group.kept);
  return [group.kept, image, (direct ?? reasons[0])?.[2] ?? ""];
}));

function tile(image, group) {
  const pair = opened.find(([kept, other]) => (image === group.kept ? kept : other) === image);
  const button = make("button", { type: "button" }, picture(image, ""), caption(data.splits[image], classOf(image)),
    caption("", pathOf(image).split("/").pop()),
    make("span", { className: "foot" }, caption("", image === group.kept ? "kept" : pair[2])));
  button.setAttribute("aria-label", `Open ${pathOf(image)}${image === group.kept ? ", which is kept" : `, ${pair[2]}`}`);
  button.addEventListener("click", () => viewPair(pair, opened));
  return make("li", {}, button);
}

$("group-list").append(...data.groups.map((group, number) => {
  const names = new Set(group.images.map(classOf));
  const facts = [group.across ? "across splits" : "", names.size > 1 ? `${names.size} classes` : ""].filter(Boolean);
  return make("li", {}, make("h3", { textContent: [`Group ${number + 1}`, ...facts].join(" · ") }),
    make("ul", { className: "pairs" }, ...group.images.map((image) => tile(image, group))));
}));
if (!data.groups.length) $("group-list").append(make("li", { textContent: "None." }));
drawMarks();
