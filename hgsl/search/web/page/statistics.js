// The statistics of the index, as rows of a table.

const number = new Intl.NumberFormat("en");

/** Returns [name, value] pairs of what `/api/index` describes. */
export function statistics(about) {
  const counts = Object.entries(about.labels).sort((a, b) => b[1] - a[1]);
  const labeled = counts.reduce((sum, [, count]) => sum + count, 0);
  const rows = [["Images", number.format(about.images)]];
  if (counts.length) {
    const [most, least] = [counts[0], counts.at(-1)];
    const middle = counts[Math.floor(counts.length / 2)][1];
    rows.push(["Labels", number.format(counts.length)]);
    if (labeled < about.images) rows.push(["Without a label", number.format(about.images - labeled)]);
    rows.push(["Images per label", `${number.format(least[1])} (${least[0]}) to ${number.format(most[1])} (${most[0]}), ` +
      `median ${number.format(middle)}`]);
  }
  rows.push(["Model", about.backbone], ["Dimensions", number.format(about.dimensions)],
    ["Search", /^flat$/i.test(about.index_type) ? "exact" : `approximate, ${about.index_type}`],
    ["No match below", about.threshold === null ? "not calibrated" : about.threshold.toFixed(4)]);
  return rows;
}
