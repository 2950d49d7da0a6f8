/**
 * Tiers in words, as far as the API tells them.
 */

/** Where the list says that a session is. */
export const tierOf = (session) => (session.archival_status === "S3" ? "cold (S3)" : "hot or warm");

/** Where a session is that was just read: any read brings it to the hot tier. */
export const tierOfRead = (source) => (source === "bus" ? "hot (Redis)" : "warm (MongoDB)");
