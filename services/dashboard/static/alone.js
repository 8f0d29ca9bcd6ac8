// Lines through what is known at some steps only. A point without a neighbour is joined to nothing, so it gets a symbol.
// The indices of values whose neighbours are unknown.
export function alone(rows, column) {
  const isKnown = (i) => typeof rows[i]?.[column] === "number";
  return rows.map((_, i) => i).filter((i) => isKnown(i) && !isKnown(i - 1) && !isKnown(i + 1));
}

// The series with those symbols; what draws all of its symbols, or none ever, is left as it is.
export function withSymbols(series, datasets) {
  return (series || []).map((one) => {
    if (one.type !== "line" || one.showSymbol !== false || one.symbol === "none") return one;
    const rows = one.data || datasets[one.datasetIndex || 0] || [];
    const found = new Set(alone(rows, one.encode ? one.encode.y : 1));
    if (!found.size) return one;
    return { ...one, showSymbol: true, symbolSize: 6, symbol: (_, { dataIndex }) => (found.has(dataIndex) ? one.symbol : "none") };
  });
}

// An axis of steps that has but one of them: ECharts would put half steps around it.
export function withRoom(axis, rows) {
  if (axis?.min !== "dataMin" || !rows.length || rows.some((row) => row[0] !== rows[0][0])) return axis;
  return { ...axis, min: rows[0][0] - 1, max: rows[0][0] + 1 };
}
