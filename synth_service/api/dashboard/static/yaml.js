// Writes a job as YAML, the way people write it: blocks for parts, one line for lists of numbers.

const PLAIN = /^[A-Za-z_/][\w./:-]*$/;
const RESERVED = /^(true|false|yes|no|on|off|null|none|y|n)$/i;

// JSON's strings and numbers are YAML's too, but for a number like 3e-8, which YAML 1.1 takes for text.
function scalar(value) {
  if (typeof value === "string") {
    const isPlain = PLAIN.test(value) && !RESERVED.test(value) && !value.endsWith(":");
    return isPlain ? value : JSON.stringify(value);
  }
  if (typeof value === "number") return String(value).replace(/^(-?\d+)e/, "$1.0e").replace(/e(\d)/, "e+$1");
  return JSON.stringify(value);
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function flow(value) {
  if (Array.isArray(value)) return `[${value.map(flow).join(", ")}]`;
  if (isObject(value)) return `{${Object.entries(value).map(([name, each]) => `${scalar(name)}: ${flow(each)}`).join(", ")}}`;
  return scalar(value);
}

/** The YAML of an object of JSON values. */
export function toYaml(value, indent = "") {
  let text = "";
  for (const [name, each] of Object.entries(value)) {
    const isBlock = isObject(each) && Object.keys(each).length > 0;
    text += isBlock ? `${indent}${scalar(name)}:\n${toYaml(each, `${indent}  `)}` : `${indent}${scalar(name)}: ${flow(each)}\n`;
  }
  return text;
}
