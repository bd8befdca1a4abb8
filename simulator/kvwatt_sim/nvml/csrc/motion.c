/* One simulated GPU through time: it stands still until somebody looks, then catches up exactly.
 *
 * Between events (a lock comes into force, the clock falls to idle, a thermal step) the power is
 * constant, so energy is an exact sum and temperature and averages have closed forms. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <string.h>

#include "law.h"

#define AVERAGE_TAU_S 0.5       /* the mean delay of a 1 s window */
#define THERMAL_STEP_S 0.1      /* only near the slowdown temperature */
#define THERMAL_MARGIN_C 4.0
#define MAX_GAP_S (7 * 86400.0) /* bounds the work after a long silence */

static double approach(double from, double to, double dt_s, double tau_s)
{
    return tau_s > 0 ? to + (from - to) * exp(-dt_s / tau_s) : to;
}

static double settled_temperature_c(const kvws_spec *spec, double power_w)
{
    return spec->ambient_c + spec->heat_rise_c * power_w / spec->default_cap_w;
}

/* Puts every lock into force whose time has come. */
static void apply_requests(kvws_gpu *gpu, double now_s)
{
    int n = 0;
    while (n < gpu->n_requests && gpu->requests[n].at_s <= now_s)
        gpu->lock = gpu->requests[n++].lock;
    gpu->n_requests -= n;
    memmove(gpu->requests, gpu->requests + n, sizeof gpu->requests[0] * (size_t)gpu->n_requests);
}

static int working(const kvws_gpu *gpu)
{
    return gpu->compute > 0 || gpu->memory > 0;
}

/* Whether a process has a context: without one the GPU drops to its lowest clock and memory off. */
static int in_use(const kvws_gpu *gpu)
{
    for (int i = 0; i < KVWS_MAX_PROCESSES; i++) {
        pid_t pid = gpu->processes[i].pid;
        if (pid > 0 && (kill(pid, 0) == 0 || errno != ESRCH))
            return 1;
    }
    return gpu->health.hidden_bytes > 0;
}

/* Clock and power as they are at motion->t_s. */
static void settle_now(kvws_gpu *gpu, kvws_motion *motion)
{
    apply_requests(gpu, motion->t_s);
    motion->idle = !working(gpu) && motion->t_s >= gpu->idle_since_s + gpu->spec.idle_after_s;
    if (!isnan(gpu->forced_c))
        motion->temperature_c = gpu->forced_c;
    motion->throttle_level = kvws_thermal_level(&gpu->spec, motion->temperature_c, motion->throttle_level);
    kvws_settle(gpu, motion);
    if (motion->idle && gpu->spec.law[KVWS_LAW_PARKED_W] > 0 && !in_use(gpu)) {
        motion->clock_mhz = gpu->spec.clocks_mhz[0];
        motion->power_w = gpu->spec.law[KVWS_LAW_PARKED_W];
    }
}

/* Time of the next event after motion->t_s, at most until_s. */
static double next_event_s(const kvws_gpu *gpu, const kvws_motion *motion, double until_s)
{
    const kvws_spec *spec = &gpu->spec;
    double next_s = until_s;
    double idle_s = gpu->idle_since_s + spec->idle_after_s;
    double settled_c = settled_temperature_c(spec, motion->power_w);
    double edge_c = spec->slowdown_c - THERMAL_MARGIN_C;
    if (gpu->n_requests && gpu->requests[0].at_s < next_s)
        next_s = gpu->requests[0].at_s;
    if (!working(gpu) && !motion->idle && idle_s < next_s)
        next_s = idle_s;
    if (isnan(gpu->forced_c) && (settled_c >= edge_c || motion->temperature_c >= edge_c)
        && motion->t_s + THERMAL_STEP_S < next_s)
        next_s = motion->t_s + THERMAL_STEP_S;
    return next_s;
}

/* Moves to `to_s` at constant power; the visible counter takes the last refresh in (t_s, to_s]. */
static void integrate(const kvws_gpu *gpu, kvws_motion *motion, double to_s)
{
    const kvws_spec *spec = &gpu->spec;
    double dt_s = to_s - motion->t_s;
    double refresh_s = to_s;
    double busy = fmin(1.0, gpu->compute + gpu->memory);
    if (spec->energy_update_s > 0)
        refresh_s = floor(to_s / spec->energy_update_s) * spec->energy_update_s;
    if (refresh_s > motion->t_s)
        motion->visible_j = motion->energy_j + motion->power_w * (refresh_s - motion->t_s);
    motion->energy_j += motion->power_w * dt_s;
    motion->average_w = approach(motion->average_w, motion->power_w, dt_s, AVERAGE_TAU_S);
    motion->busy = approach(motion->busy, busy, dt_s, AVERAGE_TAU_S);
    motion->memory_busy = approach(motion->memory_busy, gpu->memory, dt_s, AVERAGE_TAU_S);
    double settled_c = settled_temperature_c(spec, motion->power_w);
    motion->temperature_c = approach(motion->temperature_c, settled_c, dt_s, spec->thermal_tau_s);
    motion->t_s = to_s;
}

void kvws_gpu_start(kvws_gpu *gpu, double now_s)
{
    kvws_motion *motion = &gpu->motion;
    gpu->cap_w = gpu->spec.cap_w;
    gpu->persistence = gpu->spec.persistence;
    gpu->forced_c = NAN;
    gpu->idle_since_s = -INFINITY;
    motion->t_s = now_s;
    motion->temperature_c = gpu->spec.ambient_c;
    settle_now(gpu, motion);
    motion->average_w = motion->power_w;
    motion->temperature_c = settled_temperature_c(&gpu->spec, motion->power_w);
}

void kvws_gpu_advance(kvws_gpu *gpu, double now_s)
{
    kvws_motion motion = gpu->motion;
    /* A monotonic clock goes back only over a reboot: take up from there. */
    if (now_s < motion.t_s || now_s - motion.t_s > MAX_GAP_S)
        motion.t_s = now_s;
    settle_now(gpu, &motion);
    while (motion.t_s < now_s) {
        integrate(gpu, &motion, next_event_s(gpu, &motion, now_s));
        settle_now(gpu, &motion);
    }
    gpu->motion = motion;
}

static void resettle(kvws_gpu *gpu)
{
    kvws_motion motion = gpu->motion;
    settle_now(gpu, &motion);
    gpu->motion = motion;
}

void kvws_gpu_publish(kvws_gpu *gpu, double now_s, double compute, double memory)
{
    kvws_gpu_advance(gpu, now_s);
    if (working(gpu) && compute <= 0 && memory <= 0)
        gpu->idle_since_s = now_s;
    gpu->compute = compute;
    gpu->memory = memory;
    resettle(gpu);
}

/* The lock comes into force after the switch latency; requests on their way keep their own times. */
void kvws_gpu_request(kvws_gpu *gpu, double now_s, kvws_lock lock)
{
    kvws_gpu_advance(gpu, now_s);
    if (gpu->n_requests == KVWS_MAX_REQUESTS)
        gpu->n_requests--;
    gpu->requests[gpu->n_requests].lock = lock;
    gpu->requests[gpu->n_requests].at_s = now_s + gpu->spec.switch_latency_s;
    gpu->n_requests++;
    resettle(gpu);
}

void kvws_gpu_set_cap(kvws_gpu *gpu, double now_s, double cap_w)
{
    kvws_gpu_advance(gpu, now_s);
    gpu->cap_w = cap_w;
    resettle(gpu);
}

/* NAN lets the temperature follow the power again. */
void kvws_gpu_force_temperature(kvws_gpu *gpu, double now_s, double temperature_c)
{
    kvws_gpu_advance(gpu, now_s);
    gpu->forced_c = temperature_c;
    resettle(gpu);
}

/* Clock at which work would run that started now with the last activity. */
int kvws_gpu_load_clock_mhz(const kvws_gpu *gpu)
{
    kvws_motion motion = gpu->motion;
    motion.idle = 0;
    kvws_settle(gpu, &motion);
    return motion.clock_mhz;
}

int kvws_gpu_supports(const kvws_gpu *gpu, unsigned int clock_mhz)
{
    for (int i = 0; i < gpu->spec.n_clocks; i++)
        if ((unsigned int)gpu->spec.clocks_mhz[i] == clock_mhz)
            return 1;
    return 0;
}
