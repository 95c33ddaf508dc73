// Lists every exchange: its id, name and asset class.
import { readArguments } from "./arguments.js";

const { client } = readArguments("list.js", 0);
for (const { id, name, assetClass } of await client.allExchanges()) {
  console.log(`${id}\t${name}\t${assetClass}`);
}
client.close();
