/** What the server sends. Absent is null; a number that arithmetic made non-finite is one of three strings. */
export type Num = number | null | "NaN" | "Infinity" | "-Infinity";

/** The cells of one metric: all of them, or, with `changed` (a bit a cell), those that have changed. */
export interface HeatEvent {
  metric: string;
  fold: string;
  revision: number;
  bits: 8 | 16;
  from: number;
  to: number;
  codes: string;
  changed?: string;
}

export interface HeatChoice {
  name: string;
  title: string;
  unit: string;
  low: number;
  high: number;
  worst_is_high: boolean;
}

export interface FleetLayout {
  revision: number;
  cells: "gpus" | "nodes";
  gpus: number;
  nodes: string[];
  sizes: number[];
  gpu?: number[];
  uuid?: (string | null)[];
}

export interface FleetEvent {
  time: number;
  revision: number;
  gpus: number;
  reporting: number;
  stale: number;
  simulated: number;
  layout?: FleetLayout;
  choices?: HeatChoice[];
}

export interface JobLine {
  job: string;
  attempt: string;
  attempts: number;
  state: "running" | "silent" | "ended";
  step: number | null;
  loss: Num;
  grad_norm: Num;
  steps_per_second: number | null;
  tokens_per_second: number | null;
  world_size: number | null;
  ranks_seen: number;
  last_seen: number;
  first_nonfinite: Mark | null;
}

export interface Mark {
  step: number;
  rank: number;
  what: string[];
  parameter: string | null;
}

export interface JobsEvent {
  time: number;
  count: number;
  jobs: JobLine[];
}

export interface CurvePoints {
  step: number[];
  loss: Num[];
  grad_norm: Num[];
}

export interface CurveEvent {
  since: number;
  version: number;
  curves: (CurvePoints & { job: string; attempt: string })[];
  left_out: string[];
}

export interface JobDetail extends JobLine {
  shown_attempt: string;
  curve: CurvePoints & { version: number };
  nonfinite: Mark[];
}

export interface Delivery {
  receiver: string;
  transition: string;
  state: string;
  attempts: number;
  last_error: string | null;
}

export type When = number | string | null | undefined;

export interface Incident {
  id: string;
  kind: string;
  severity: string;
  tier: "page" | "ticket" | "log";
  title: string;
  status: "firing" | "resolved";
  job: string | null;
  attempt: string | null;
  onset_step: number | null;
  onset_time: When;
  detected_step: number | null;
  detected_time: When;
  resolved_time?: When;
  message?: string | null;
  where: { rank: number | null; node: string | null; gpu: number | null; uuid: string | null; parameter: string | null };
  evidence: Record<string, unknown>;
  likely_causes: { cause: string; confidence: Num; evidence: string }[];
  ranks_affected: number | null;
  gpus_affected: number | null;
  last_good_checkpoint: { step: number; path: string } | null;
  cost: { usd_per_hour: Num; usd_so_far: Num } | null;
  blind: string[];
  links: Record<string, string | null>;
  findings: number;
  simulated: boolean;
  deliveries: Delivery[];
}

export interface IncidentsEvent {
  time: number;
  open: Record<string, number>;
  incidents: Incident[];
  whole?: boolean;
}

export interface HealthEvent {
  time: number;
  bus: "available" | "unavailable";
  store: "available" | "unavailable";
  /** Whether a detector is seen to tick; null while the server is too young to know. */
  watching: boolean | null;
  lag_seconds: number | null;
  newest_record: number | null;
  frames: { seen: number; outstanding: number; lost: number; missing: number; duplicate: number };
  refused: Record<string, number>;
  /** Frames by source: those with the most, and "(others)". */
  losses: { outstanding: Record<string, number>; lost: Record<string, number>; duplicate: Record<string, number> };
  regions: RegionLine[];
  buses: { url: string; away_since: number | null; problem: string | null }[];
  /** Backlogs that wait on nodes' disks. */
  spools: { nodes: number; frames: number; bytes: number; oldest_seconds: number | null };
}

export interface RegionLine {
  region: string;
  gpus: number;
  reporting: number;
  last_frame: number;
  cut_off_since: number | null;
}
