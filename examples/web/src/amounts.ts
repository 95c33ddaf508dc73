/** A decimal string for a person, with every digit that the venue gave. Absent: the venue does not say. */
export function showAmount(amount: string | undefined, locale?: string): string {
  if (amount === undefined) {
    return "–";
  }
  const digits = amount.split(".")[1]?.length ?? 0;
  const format = new Intl.NumberFormat(locale, { minimumFractionDigits: digits, maximumFractionDigits: digits });
  // A string is formatted exactly; Number(amount) would lose digits.
  return format.format(amount as Intl.StringNumericLiteral);
}

/** The exact sum of decimal strings. */
export function addAmounts(amounts: readonly string[]): string {
  const scale = Math.max(0, ...amounts.map((amount) => amount.split(".")[1]?.length ?? 0));
  const sum = amounts.reduce((total, amount) => total + toUnits(amount, scale), 0n);
  const digits = (sum < 0n ? -sum : sum).toString().padStart(scale + 1, "0");
  const point = digits.length - scale;
  return (sum < 0n ? "-" : "") + digits.slice(0, point) + (scale > 0 ? `.${digits.slice(point)}` : "");
}

function toUnits(amount: string, scale: number): bigint {
  const [whole = "", fraction = ""] = amount.split(".");
  return BigInt(whole + fraction.padEnd(scale, "0"));
}
