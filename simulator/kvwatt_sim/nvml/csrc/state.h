/* The state of the simulated GPUs: one mmap'd file shared by every process that sees them.
 *
 * Units: seconds, MHz, watts, joules, degrees Celsius, bytes. Times are CLOCK_MONOTONIC, or the
 * stored `manual_now_s` when the file was created with manual time.
 *
 * Every field behind `mutex` is read and written with it held. The mutex is robust: the next process
 * recovers it from a dead owner. Nobody sleeps with it held, except kvws_hold_mutex on purpose. */
#ifndef KVWS_STATE_H
#define KVWS_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define KVWS_MAGIC 0x6b767773u
#define KVWS_LAYOUT 3u
#define KVWS_MAX_GPUS 8
#define KVWS_MAX_CLOCKS 256
#define KVWS_LAW_PARAMS 16
#define KVWS_LAW_PARKED_W (KVWS_LAW_PARAMS - 1) /* drawn without any process; 0: as idle */
#define KVWS_MAX_REQUESTS 16
#define KVWS_MAX_FAULTS 16
#define KVWS_MAX_PROCESSES 16
#define KVWS_LOG_ENTRIES 1024
#define KVWS_CALL_BYTES 64

enum { KVWS_PERMIT_ROOT = 0, KVWS_PERMIT_DENY = 1, KVWS_PERMIT_ALLOW = 2 };
enum { KVWS_OBEY = 0, KVWS_IGNORE = 1, KVWS_WRONG = 2 };

/* Fixed at creation; mirrored by kvwatt_sim.nvml.layout. */
typedef struct {
    char name[96];
    char uuid[80];
    char driver_version[80];
    uint64_t memory_total_bytes;
    double law[KVWS_LAW_PARAMS];
    double default_cap_w, min_cap_w, max_cap_w, cap_w;
    double switch_latency_s, idle_after_s, energy_update_s;
    double ambient_c, slowdown_c;
    double heat_rise_c, thermal_tau_s; /* rise over ambient once settled at the default cap */
    int32_t arch, cuda_version, memory_clock_mhz, boost_mhz, idle_mhz;
    int32_t mig, persistence;
    int32_t n_clocks;
    int32_t clocks_mhz[KVWS_MAX_CLOCKS]; /* ascending */
} kvws_spec;

/* A clock lock; max_mhz 0 means none. */
typedef struct {
    int32_t min_mhz, max_mhz;
} kvws_lock;

/* A lock asked for and not yet in force. */
typedef struct {
    double at_s;
    kvws_lock lock;
} kvws_request;

/* What moves with time. Advanced in a local copy and committed by one assignment, so that a process
 * killed meanwhile leaves the old or the new motion behind. */
typedef struct {
    double t_s, energy_j, visible_j, power_w, average_w;
    double busy, memory_busy; /* averaged like average_w, 0..1 */
    double temperature_c;
    int32_t clock_mhz;
    int32_t throttle_level; /* thermal, see law.c */
    uint32_t reasons;       /* NVML clocks event reasons */
    int32_t idle;
} kvws_motion;

typedef struct {
    char call[KVWS_CALL_BYTES]; /* exact name, or a prefix ending in '*' */
    double hang_s, slow_s;
    int64_t remaining; /* calls left; negative: no limit */
    int32_t error;     /* nvmlReturn_t; 0: the call goes on */
    int32_t obedience; /* KVWS_OBEY, KVWS_IGNORE, KVWS_WRONG */
} kvws_fault;

typedef struct {
    uint64_t used_bytes;
    int32_t pid; /* 0: free slot */
    int32_t reserved;
} kvws_process;

/* What is wrong with the GPU, as far as NVML tells; mirrored by kvwatt_sim.nvml.layout. */
typedef struct {
    uint64_t ecc_corrected, ecc_uncorrected; /* since the driver was loaded */
    uint64_t hidden_bytes;                   /* used by processes that nobody here can see */
    uint64_t xid;                            /* of the last critical error; 0: none */
    uint64_t xid_count;
    int32_t ecc; /* whether the memory has ECC at all */
    int32_t retirement_pending;
    int32_t remapped_corrected, remapped_uncorrected, remap_pending, remap_failure;
    int32_t recovery_action; /* NVML_GPU_RECOVERY_ACTION_* */
    int32_t reserved;
} kvws_health;

typedef struct {
    kvws_spec spec;
    kvws_motion motion;
    kvws_lock lock;
    kvws_request requests[KVWS_MAX_REQUESTS]; /* oldest first */
    double compute, memory;                   /* activity, 0..1 */
    double idle_since_s;
    double cap_w;
    double forced_c; /* NAN: temperature follows power */
    int32_t n_requests;
    int32_t persistence;
    int32_t n_faults;
    atomic_uint fault_epoch; /* changes when faults are cleared: ends every hang */
    kvws_fault faults[KVWS_MAX_FAULTS];
    kvws_process processes[KVWS_MAX_PROCESSES];
    kvws_health health;
} kvws_gpu;

typedef struct {
    double t_s;
    int32_t pid, gpu, result, reserved;
    char comm[16];
    char call[KVWS_CALL_BYTES];
    char args[64];
} kvws_log_entry;

typedef struct {
    uint32_t magic, layout;
    pthread_mutex_t mutex;
    int32_t n_gpus, permission, manual_time, recovered;
    double manual_now_s;
    uint64_t n_logged;
    kvws_log_entry log[KVWS_LOG_ENTRIES];
    kvws_gpu gpus[KVWS_MAX_GPUS];
} kvws_state;

/* All return 0 or an errno value. */
int kvws_state_create(const char *path, unsigned int mode, const kvws_state *initial);
int kvws_state_map(const char *path, kvws_state **state);
void kvws_state_unmap(kvws_state *state);
int kvws_state_lock(kvws_state *state);
void kvws_state_unlock(kvws_state *state);

double kvws_real_now_s(void);
double kvws_now_s(const kvws_state *state);
void kvws_log_setter(kvws_state *state, int gpu, const char *call, const char *args, int result);

/* motion.c: the GPU through time. */
void kvws_gpu_start(kvws_gpu *gpu, double now_s);
void kvws_gpu_advance(kvws_gpu *gpu, double now_s);
void kvws_gpu_publish(kvws_gpu *gpu, double now_s, double compute, double memory);
void kvws_gpu_request(kvws_gpu *gpu, double now_s, kvws_lock lock);
void kvws_gpu_set_cap(kvws_gpu *gpu, double now_s, double cap_w);
void kvws_gpu_force_temperature(kvws_gpu *gpu, double now_s, double temperature_c);
int kvws_gpu_load_clock_mhz(const kvws_gpu *gpu);
int kvws_gpu_supports(const kvws_gpu *gpu, unsigned int clock_mhz);

#endif
