#!/usr/bin/env bash
# Does `docker compose up` give a service that works? Builds the images, runs real jobs over HTTP, kills, scales and
# restarts, and ends with a table of how long everything took. Exits with 0 when all of it held.
#
#   docker/smoke.sh                            Compose v2
#   COMPOSE=docker-compose docker/smoke.sh     Compose 1.29
#
# Needs docker, curl and python3 (nothing but its standard library). It has a project name, a port and image tags of its
# own, reads no .env, and removes what it made: a service that runs here already is not touched.
#
# Settings: SMOKE_TIMEOUT=1800   seconds that one job may take
#           SMOKE_THREADS=1      CPU threads of each worker
#           SMOKE_KEEP=1         leave everything as it is at the end
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

COMPOSE=${COMPOSE:-docker compose}
TIMEOUT=${SMOKE_TIMEOUT:-1800}
PROJECT=dfkd-smoke-$$
USER_ID=10001
LEAST_TOP1=0.96
WORK=$(mktemp -d)
export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1

# What the caller's environment sets is not what a fresh clone has.
for name in $(compgen -e | grep -E '^(DFKD_|REDIS_|COMPOSE_(FILE|PROFILES|PROJECT_NAME)$)' || true); do unset "$name"; done
export DFKD_IMAGE_TAG=$PROJECT DFKD_THREADS=${SMOKE_THREADS:-1}
DFKD_PORT=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export DFKD_PORT
URL=http://127.0.0.1:$DFKD_PORT
: >"$WORK/env"

# --- tools -----------------------------------------------------------------------------------------------------------

compose() { $COMPOSE -p "$PROJECT" --env-file "$WORK/env" -f docker-compose.yml "$@"; }
say() { printf '\n== %s\n' "$*"; }
die() { printf '\nFAILED: %s\n' "$*" >&2; exit 1; }

# containers SERVICE: ids of those that run.
containers() {
  docker ps -q --filter "label=com.docker.compose.project=$PROJECT" --filter "label=com.docker.compose.service=$1"
}
one() { containers "$1" | head -n 1; }

# A clock, and the table it fills: `started` begins a step, `took NAME [NOTE]` ends it.
now() { date +%s.%N; }
started() { STARTED=$(now); }
took() {
  local row
  row=$(python3 -c 'import sys; print(f"{sys.argv[1]:<58} {float(sys.argv[3]) - float(sys.argv[2]):>8.1f}   {sys.argv[4]}")' \
    "$1" "$STARTED" "$(now)" "${2:-}")
  echo "$row" >>"$WORK/table"
  echo "$row"
}

# json EXPRESSION: evaluates it with the JSON of standard input as `it`.
json() { python3 -c 'import json, sys; it = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }
get() { curl -fsS --max-time 20 "$URL$1"; }

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $until ] || die "waited in vain for $what"
    sleep 0.5
  done
}

# healthy SERVICE [COUNT]: whether that many containers run and each calls itself healthy.
healthy() {
  local id count=0
  for id in $(containers "$1"); do
    [ "$(docker inspect -f '{{.State.Health.Status}}' "$id")" = healthy ] || return 1
    count=$((count + 1))
  done
  [ "$count" = "${2:-1}" ]
}
all_healthy() { healthy redis && healthy api && healthy synth "${1:-1}" && healthy distiller; }

# job CHANGES: submits the digits example, with Python statements that change its `spec`; prints the job's id.
job() {
  docker exec -i "$(one api)" python -c '
import json, sys, yaml
spec = yaml.safe_load(sys.stdin)
exec(sys.argv[1])
print(json.dumps(spec))' "$1" <examples/digits/job.yaml >"$WORK/spec.json"
  curl -fsS --max-time 20 -H 'Content-Type: application/json' --data-binary "@$WORK/spec.json" "$URL/jobs" | json 'it["id"]'
}
state() { get "/jobs/$1" | json 'it["state"]'; }
has_ended() { case $(state "$1" || echo unreachable) in succeeded | failed | cancelled) ;; *) return 1 ;; esac; }
# has_images ID COUNT: whether synthesis has announced that many.
has_images() { [ "$(get "/jobs/$1" | json '(it["stages"]["synthesis"] or {"images": 0})["images"]')" -ge "$2" ]; }
must_succeed() {
  wait_for "$TIMEOUT" "the end of $1" has_ended "$1"
  [ "$(state "$1")" = succeeded ] || die "$1: $(get "/jobs/$1" | json 'it["error"]')"
}


finish() {
  local code=$?
  trap - EXIT
  if [ $code != 0 ]; then
    { echo; compose ps; compose logs --tail 40; } >&2 || true
  fi
  if [ "${SMOKE_KEEP:-}" = 1 ]; then
    echo "left as it is: project $PROJECT, $URL"
  else
    say "cleaning up"
    compose down --volumes --remove-orphans >"$WORK/down.log" 2>&1 || cat "$WORK/down.log" >&2
    docker image rm "fast-dfkd-api:$PROJECT" "fast-dfkd-worker:$PROJECT" >/dev/null 2>&1 || true
    # Synthesis worker and distiller share an image, which Compose builds once for each: one of them has no name.
    docker image prune -f --filter "label=org.opencontainers.image.revision=$PROJECT" >/dev/null || true
    [ -z "$(docker ps -aq --filter "label=com.docker.compose.project=$PROJECT")" ] || echo "containers are left" >&2
  fi
  if [ -s "$WORK/table" ]; then
    printf '\n%-58s %8s\n' "step" "seconds"
    cat "$WORK/table"
  fi
  rm -rf "$WORK"
  [ $code = 0 ] && printf '\nall of it held (%s)\n' "$COMPOSE" || printf '\nFAILED (%s)\n' "$COMPOSE"
  exit $code
}
trap finish EXIT
trap 'echo "line $LINENO: $BASH_COMMAND" >&2' ERR
trap 'echo interrupted >&2; exit 130' INT TERM HUP

# --- what must hold --------------------------------------------------------------------------------------------------

say "build"
started
compose build --build-arg "REVISION=$PROJECT" >"$WORK/build.log" 2>&1 || { tail -n 40 "$WORK/build.log" >&2; die "the images cannot be built"; }
megabytes() { docker image inspect -f '{{.Size}}' "$1:$PROJECT" | awk '{printf "%.0f MB", $1 / 1e6}'; }
took "build" "api $(megabytes fast-dfkd-api), worker $(megabytes fast-dfkd-worker)"

say "up"
started
compose up -d
wait_for 300 "an answer of the API" curl -fs -o /dev/null --max-time 2 "$URL/readyz"
listening=$(python3 - "$(docker inspect -f '{{.State.StartedAt}}' "$(one api)")" \
  "$(docker logs -t "$(one api)" 2>&1 | grep -m 1 api_listening)" <<'PYTHON'
import sys
from datetime import datetime

started, listening = (datetime.fromisoformat(text.split()[0].rstrip("Z")[:26]) for text in sys.argv[1:])
print(f"{(listening - started).total_seconds():.2f}")
PYTHON
)
took "up -d until the API is ready" "it listens $listening s after the start of its container"
wait_for 300 "four healthy containers" all_healthy
took "up -d until all containers are healthy"

# The page and what it loads are in the package, not only in the checkout.
assets=$(get /ui/ | grep -oE '/ui/static/[^"]+' | sort -u)
[ -n "$assets" ] || die "the dashboard loads nothing"
for asset in $assets; do get "$asset" >/dev/null || die "there is no $asset"; done

say "containers are as small and as closed as they should be"
docker exec "$(one api)" python -c 'from importlib.util import find_spec; raise SystemExit(find_spec("torch") is not None)' ||
  die "there is torch in the API's image"
for service in api synth distiller; do
  [ "$(docker exec "$(one $service)" id -u)" = $USER_ID ] || die "$service does not run as $USER_ID"
  ! docker exec "$(one $service)" touch /usr/local/written 2>/dev/null || die "$service can write its root file system"
done
for service in redis synth distiller; do
  [ -z "$(docker port "$(one $service)")" ] || die "$service is published"
done
[ "$(docker port "$(one api)" 8000/tcp)" = "127.0.0.1:$DFKD_PORT" ] || die "the API is published beyond loopback"

say "a job from the host"
started
first=$(job '')
must_succeed "$first"
top1=$(get "/jobs/$first" | json 'it["result"]["student_top1"]')
python3 -c "raise SystemExit(not $top1 >= $LEAST_TOP1)" || die "the student has $top1, less than $LEAST_TOP1"
took "digits job" "student top-1 $top1"

say "who owns the files"
# All but the example, which is mounted from the checkout.
files() { docker exec "$(one api)" find /data -path /data/digits -prune -o -type f "$@" -print; }
others=$(files ! -uid $USER_ID)
[ -z "$others" ] || die "not owned by $USER_ID: $others"
[ "$(files | wc -l)" -gt 100 ] || die "where are the shards?"
echo "all of $(files | wc -l) files belong to $USER_ID"

# From here on a job is shorter: it is about workers, not about the student.
SHORT='spec["synthesis"]["num_images"] = 2560; spec["distillation"]["steps"] = 100; spec["evaluation"]["every_steps"] = 100'

say "the synthesis container is killed in mid-job"
started
second=$(job "$SHORT; spec['seed'] = 1")
wait_for "$TIMEOUT" "images" has_images "$second" 384
victim=$(one synth)
# From inside, as the kernel does it when memory runs out: `docker kill` would switch the restart policy off.
docker exec "$victim" python -c 'import os; os.kill(-1, 9)' || true
restarted() { [ "$(docker inspect -f '{{.RestartCount}} {{.State.Running}}' "$victim")" = "1 true" ]; }
wait_for 60 "the restart of the container" restarted
took "kill after some images, until the container is back"
must_succeed "$second"
attempts=$(get "/jobs/$second" | json 'it["stages"]["synthesis"]["attempt"]')
images=$(get "/jobs/$second" | json 'it["stages"]["synthesis"]["images"]')
[ "$attempts" -ge 2 ] || die "synthesis ended in its first attempt: the kill came too late"
[ "$images" = 2560 ] || die "$images images instead of 2560"
took "job with a killed container" "$attempts attempts, $images images"

say "three synthesis workers"
started
compose up -d --scale synth=3
wait_for 300 "three healthy synthesis workers" all_healthy 3
took "up -d --scale synth=3"
started
third=$(job "$SHORT; spec['seed'] = 2; spec['synthesis']['num_images'] = 3840; spec['synthesis']['partitions'] = 3")
wait_for "$TIMEOUT" "images" has_images "$third" 384
workers=$(get "/jobs/$third" | json 'len({p["worker"] for p in it["stages"]["synthesis"]["partitions"] if p["worker"]})')
[ "$workers" = 3 ] || die "$workers workers have the 3 partitions"
# One of them is asked to leave, as a rolling update asks: it gives its partition back and goes in good order.
leaving=$(one synth)
before=$SECONDS
docker stop -t 30 "$leaving" >/dev/null
[ "$(docker inspect -f '{{.State.ExitCode}}' "$leaving")" = 0 ] || die "a worker does not leave with 0 after SIGTERM"
left=$((SECONDS - before))
[ $left -le 12 ] || die "a worker takes $left s to leave, which should take ten at most"
must_succeed "$third"
took "job of 3 partitions, one worker stopped meanwhile" "it left with exit code 0 after $left s"

say "down, and up again"
started
compose down
[ -z "$(docker ps -aq --filter "label=com.docker.compose.project=$PROJECT")" ] || die "containers are left after down"
took "down"
started
compose up -d
wait_for 300 "four healthy containers" all_healthy
for id in "$first" "$second" "$third"; do
  [ "$(state "$id")" = succeeded ] || die "$id is gone after the restart"
done
shard=$(get "/jobs/$first/shards" | json 'it["data"][0]["name"]')
expected=$(get "/jobs/$first/shards" | json 'it["data"][0]["sha256"]')
actual=$(get "/jobs/$first/shards/$shard" | python3 -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
[ "$expected" = "$actual" ] || die "the shard $shard is not what its manifest says"
took "up -d again, three finished jobs and their files there"
