import { createHmac } from "node:crypto";

const LIFETIME_SECONDS = 600;

export interface TokenReply {
  token: string;
  lifetimeSeconds: number;
}

/** A token by which a page reads and manages the accounts of this user, and of no other. `secret` is `jwt_secret`. */
export function mintToken(userId: string, secret: string): TokenReply {
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    sub: userId,
    aud: "authenticated",
    iat: now,
    exp: now + LIFETIME_SECONDS,
    // Without this claim the token reads the user's balances, but stores no key.
    exchange_service_users: { users: [userId], manage: true },
  };
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
  const signature = createHmac("sha256", secret).update(signed).digest("base64url");
  return { token: `${signed}.${signature}`, lifetimeSeconds: LIFETIME_SECONDS };
}

function encode(part: object): string {
  return Buffer.from(JSON.stringify(part)).toString("base64url");
}
