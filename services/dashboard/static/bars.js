// The cross of standard errors over a point [x, y, step, error of x, error of y], as charts.py draws it.
export function bars(value) {
  if (!Array.isArray(value)) return [];
  const [x, y, , dx, dy] = value;
  const gap = [null, null];
  return [...(dx ? [[x - dx, y], [x + dx, y], gap] : []), ...(dy ? [[x, y - dy], [x, y + dy], gap] : [])];
}
