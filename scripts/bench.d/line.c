/* A long line between two network namespaces: `line NAMESPACE NAMESPACE DELAY_MS MBIT_S`.
 *
 * Each end is a TUN device, so that TCP and TLS behave as over a real link: handshakes, slow start
 * and windows cost round trips. A packet waits DELAY_MS; no more than MBIT_S go through a direction.
 * Prints "up" when packets pass; runs until it is ended. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { LONGEST = 2048, ROOM = 1 << 14 };

struct packet {
  int length;
  double due;
  char bytes[LONGEST];
};

/* One direction: a ring of packets under way. Packets that find no room are dropped, as a router does. */
struct direction {
  int from, to;
  double delay, bytes_per_second, free_at;
  struct packet *ring;
  size_t first, count;
  pthread_mutex_t lock;
  pthread_cond_t arrived;
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int end_in(const char *namespace, int number) {
  char text[512];
  snprintf(text, sizeof text, "/var/run/netns/%s", namespace);
  int ns = open(text, O_RDONLY | O_CLOEXEC);
  if (ns < 0 || setns(ns, CLONE_NEWNET)) fail(text);
  close(ns);
  int device = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
  strcpy(request.ifr_name, "line");
  if (device < 0 || ioctl(device, TUNSETIFF, &request)) fail("/dev/net/tun");
  snprintf(text, sizeof text,
           "ip address add 10.98.0.%d/30 dev line && ip link set line mtu 1500 txqueuelen 10000 up && ip link set lo up", number);
  if (system(text)) exit(1);
  return device;
}

static void *take(void *argument) {
  struct direction *d = argument;
  char bytes[LONGEST];
  for (;;) {
    int length = read(d->from, bytes, sizeof bytes);
    if (length <= 0) continue;
    pthread_mutex_lock(&d->lock);
    if (d->count < ROOM) {
      double t = now();
      if (d->free_at < t) d->free_at = t;
      d->free_at += length / d->bytes_per_second;
      struct packet *p = &d->ring[(d->first + d->count++) % ROOM];
      p->length = length;
      p->due = d->free_at + d->delay;
      memcpy(p->bytes, bytes, length);
      pthread_cond_signal(&d->arrived);
    }
    pthread_mutex_unlock(&d->lock);
  }
  return NULL;
}

static void *give(void *argument) {
  struct direction *d = argument;
  for (;;) {
    pthread_mutex_lock(&d->lock);
    while (!d->count) pthread_cond_wait(&d->arrived, &d->lock);
    struct packet *p = &d->ring[d->first];
    pthread_mutex_unlock(&d->lock);
    double left = p->due - now();
    if (left > 0) {
      struct timespec t = {left, (left - (time_t)left) * 1e9};
      nanosleep(&t, NULL);
    }
    /* An end that is down loses the packet. */
    if (write(d->to, p->bytes, p->length) < 0) {}
    pthread_mutex_lock(&d->lock);
    d->first = (d->first + 1) % ROOM;
    d->count--;
    pthread_mutex_unlock(&d->lock);
  }
  return NULL;
}

int main(int count, char **words) {
  if (count != 5) {
    fprintf(stderr, "usage: line NAMESPACE NAMESPACE DELAY_MS MBIT_S\n");
    return 2;
  }
  int ends[2] = {end_in(words[1], 1), end_in(words[2], 2)};
  static struct direction directions[2];
  for (int i = 0; i < 2; i++) {
    struct direction *d = &directions[i];
    d->from = ends[i];
    d->to = ends[1 - i];
    d->delay = atof(words[3]) / 1e3;
    d->bytes_per_second = atof(words[4]) * 1e6 / 8;
    d->ring = calloc(ROOM, sizeof *d->ring);
    if (!d->ring) fail("no memory");
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->arrived, NULL);
    pthread_t thread;
    if (pthread_create(&thread, NULL, take, d) || pthread_create(&thread, NULL, give, d)) fail("no thread");
  }
  puts("up");
  fflush(stdout);
  for (;;) pause();
}
