/* The bench's upstream and its client: what stands on either side of the proxy that is measured.
 *
 *     load serve ADDRESS PORT
 *     load ask ADDRESS PORT KEY MODEL CONNECTIONS SECONDS RATE MOST ARRIVALS
 *
 * In C, because one core has to ask and answer faster than nginx can pass on with another one.
 *
 * `serve` is a model provider. A request body that holds "stream":true is answered with events, each with its number and
 * the moment at which it was sent; how many and how far apart says the model's name: bench-c100-i10000 means 100 events,
 * 10,000 us apart, the first at once, together with the head. Then comes an event with usage, and [DONE]. Everything else
 * gets one JSON object with usage.
 *
 * `ask` sends requests for SECONDS, at most MOST of them (0: no bound), and streams if MODEL names events. With RATE 0
 * every connection asks again as soon as it has its answer (closed loop). Otherwise requests fall due RATE times a second
 * (open loop), evenly or at random, and each counts from the moment at which it was due, whether or not a connection was
 * free for it. An answer is good if its status is 200, every byte of its framing is there, and so are all events in order,
 * usage and the end. Prints one JSON object, times in us.
 *
 * ADDRESS has to be in 127.0.0.0/8.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FDS = 65536, BUFFER = 65536, BATCH = 256, TICK_NS = 250000, GRACE_S = 20 };

static int polled; /* the epoll instance */

static void fail(const char *what) {
  fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "refused");
  exit(2);
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static struct sockaddr_in loopback(const char *address, const char *port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
  errno = 0;
  if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || ntohl(to.sin_addr.s_addr) >> 24 != 127) fail("not loopback");
  return to;
}

static void watch(int fd) {
  int yes = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes); /* fails for a timer, which does not matter */
  struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
  if (fd >= MOST_FDS || epoll_ctl(polled, EPOLL_CTL_ADD, fd, &event)) fail("epoll");
}

/* Once at `at_ns`, and then every `every_ns` if that is not 0. */
static void set_timer(int timer, int64_t at_ns, int64_t every_ns) {
  struct itimerspec when = {{every_ns / 1000000000, every_ns % 1000000000}, {at_ns / 1000000000, at_ns % 1000000000}};
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, 0);
}

static void clear_timer(int timer) {
  uint64_t times;
  if (read(timer, &times, sizeof times) < 0 && errno != EAGAIN) fail("timer");
}

/* Returns 0 if the name says nothing of events. */
static int events_of(const char *model, int *events, int *interval_us) {
  const char *at = strstr(model, "-c");
  return at && sscanf(at, "-c%d-i%d", events, interval_us) == 2;
}

/* --- the provider ------------------------------------------------------------------------------------------------- */

typedef struct {
  char in[BUFFER];
  int length, open; /* open: its place among the open streams plus 1, or 0 */
  int events, sent, interval_us;
  int64_t due_ns;
} Served;

static Served *served[MOST_FDS];
static int open_streams[MOST_FDS], opened, ticks;

static const char UNARY[] =
    "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"bench\",\"choices\":[{"
    "\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"A gate keeps its hinges quiet, counts who passes, and "
    "lets the road go on as if no gate were there at all.\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":160,"
    "\"completion_tokens\":24,\"total_tokens\":184,\"prompt_tokens_details\":{\"cached_tokens\":0}}}";

static void close_stream(Served *one) {
  if (!one->open) return;
  int last = open_streams[--opened];
  open_streams[one->open - 1] = last;
  served[last]->open = one->open;
  one->open = 0;
  if (!opened) set_timer(ticks, 0, 0);
}

static void hang_up(int fd) {
  close_stream(served[fd]);
  free(served[fd]);
  served[fd] = 0;
  close(fd);
}

static int send_all(int fd, const char *bytes, int length) {
  if (send(fd, bytes, length, MSG_NOSIGNAL) == length) return 1;
  hang_up(fd); /* a proxy that left so much unread would be measured wrong: its client sees a broken answer */
  return 0;
}

static int put_chunk(char *to, const char *data, int length) {
  int at = sprintf(to, "%x\r\n", length);
  memcpy(to + at, data, length);
  memcpy(to + at + length, "\r\n", 2);
  return at + length + 2;
}

static int put_event(char *to, int number) {
  char event[512];
  int length = sprintf(event,
                       "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":"
                       "\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" a few words\"},\"finish_reason\":null}],"
                       "\"number\":%d,\"sent_ns\":%lld}\n\n",
                       number, (long long)now_ns());
  return put_chunk(to, event, length);
}

/* Send the next event, or the end. */
static void stream_on(int fd, Served *one) {
  char out[2048];
  int length;
  if (one->sent < one->events) {
    one->due_ns += one->interval_us * 1000LL;
    length = put_event(out, one->sent++);
  } else {
    char end[512];
    int size = sprintf(end,
                       "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":"
                       "\"bench\",\"choices\":[],\"usage\":{\"prompt_tokens\":160,\"completion_tokens\":%d,\"total_tokens\":%d}}"
                       "\n\ndata: [DONE]\n\n",
                       3 * one->events, 160 + 3 * one->events);
    length = put_chunk(out, end, size);
    length += sprintf(out + length, "0\r\n\r\n");
    close_stream(one);
  }
  send_all(fd, out, length);
}

static void answer(int fd, Served *one, const char *body) {
  char out[2048];
  if (!strstr(body, "\"stream\":true")) {
    int length = sprintf(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: 1\r\n"
                              "content-length: %zu\r\n\r\n%s", sizeof UNARY - 1, UNARY);
    send_all(fd, out, length);
    return;
  }
  if (!events_of(body, &one->events, &one->interval_us)) fail("a stream of unknown length was asked for");
  int length = sprintf(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: 1\r\n"
                            "transfer-encoding: chunked\r\n\r\n");
  length += put_event(out + length, 0);
  one->sent = 1;
  one->due_ns = now_ns() + one->interval_us * 1000LL;
  if (!send_all(fd, out, length)) return;
  if (!opened) set_timer(ticks, now_ns() + TICK_NS, TICK_NS);
  open_streams[opened] = fd;
  one->open = ++opened;
}

/* Answer every whole request that is there. */
static void take_requests(int fd, Served *one) {
  while (served[fd] == one) {
    one->in[one->length] = 0;
    char *end = strstr(one->in, "\r\n\r\n");
    if (!end) return;
    char *announced = strcasestr(one->in, "\r\ncontent-length:");
    if (!announced || announced > end) { errno = 0; fail("a request without content-length"); }
    int whole = end + 4 - one->in + atoi(announced + 17);
    if (whole >= BUFFER) { errno = 0; fail("a request that is too large"); }
    if (one->length < whole) return;
    char next = one->in[whole];
    one->in[whole] = 0;
    answer(fd, one, end + 4);
    if (served[fd] != one) return;
    one->in[whole] = next;
    memmove(one->in, one->in + whole, one->length -= whole);
  }
}

static void serve(struct sockaddr_in at) {
  int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (bind(listener, (void *)&at, sizeof at) || listen(listener, 4096)) fail("listen");
  ticks = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  watch(listener);
  watch(ticks);
  puts("ready");
  fflush(stdout);
  for (struct epoll_event events[BATCH];;) {
    int found = epoll_wait(polled, events, BATCH, -1);
    for (int each = 0; each < found; each++) {
      int fd = events[each].data.fd, accepted;
      if (fd == ticks) {
        clear_timer(ticks);
        int64_t now = now_ns();
        for (int place = opened - 1; place >= 0; place--) { /* backwards: one that ends is replaced by the last one */
          Served *one = served[open_streams[place]];
          if (one->due_ns <= now) stream_on(open_streams[place], one);
        }
      } else if (fd == listener) {
        while ((accepted = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
          watch(accepted);
          served[accepted] = calloc(1, sizeof(Served));
        }
      } else if (served[fd]) {
        Served *one = served[fd];
        int got = recv(fd, one->in + one->length, BUFFER - 1 - one->length, 0);
        if (got > 0) {
          one->length += got;
          take_requests(fd, one);
        } else if (got == 0 || errno != EAGAIN) {
          hang_up(fd);
        }
      }
    }
  }
}

/* --- the client --------------------------------------------------------------------------------------------------- */

typedef struct {
  int64_t *values;
  long count, room;
} Samples;

typedef struct {
  int fd, busy;
  /* What came and was not taken apart yet, and what of an event is there. */
  char in[BUFFER], event[4096];
  int length, event_length;
  /* The answer: what of its framing comes next, and how many bytes of the chunk or body are still to come. */
  enum { HEAD, SIZE, DATA, DATA_END, LAST, BODY } next;
  int64_t left;
  int good, chunked, events, usage, done;
  int64_t due_ns, first_ns, event_ns; /* event_ns: when the event before came */
} Asking;

static Asking *asking;
static int *idle, idle_first, idle_count, connections; /* idle: a ring of places in `asking` */
static struct sockaddr_in target;
static char request[8192];
static int request_length, events_wanted, interval_us;
static Samples answer_ns, first_ns, delay_ns;
static long good, bad, reconnected, held, held_first, reads;

static void keep(Samples *samples, int64_t value) {
  if (samples->count == samples->room) {
    samples->room = samples->room ? samples->room * 2 : 65536;
    if (!(samples->values = realloc(samples->values, samples->room * sizeof(int64_t)))) fail("memory");
  }
  samples->values[samples->count++] = value;
}

static void connect_place(int place) {
  Asking *one = &asking[place];
  one->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (one->fd < 0 || connect(one->fd, (void *)&target, sizeof target)) fail("connect");
  struct epoll_event event = {.events = EPOLLIN, .data.fd = place};
  int yes = 1;
  setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  if (epoll_ctl(polled, EPOLL_CTL_ADD, one->fd, &event)) fail("epoll");
}

static void ask_at(int place, int64_t due_ns) {
  Asking *one = &asking[place];
  one->busy = 1;
  one->next = HEAD;
  one->length = one->event_length = one->events = one->usage = one->done = 0;
  one->good = 1;
  one->due_ns = due_ns;
  one->first_ns = 0;
  if (send(one->fd, request, request_length, MSG_NOSIGNAL) != request_length) one->good = 0;
}

/* One whole event of a stream, and when it came. */
static void take_event(Asking *one, int64_t now) {
  one->event[one->event_length] = 0;
  char *numbered = strstr(one->event, "\"number\":"), *sent = strstr(one->event, "\"sent_ns\":");
  if (numbered && sent) {
    int64_t sent_ns = atoll(sent + 10);
    one->good &= atoi(numbered + 9) == one->events && !one->usage;
    /* The event before was held back if it came when this one had been sent already. */
    if (one->events && one->event_ns >= sent_ns) {
      held++;
      held_first += one->events == 1;
    }
    one->events++;
    one->event_ns = now;
    keep(&delay_ns, now - sent_ns);
  } else if (strstr(one->event, "\"usage\":{")) {
    one->usage = 1;
  } else if (!strcmp(one->event, "data: [DONE]\n\n")) {
    one->done = one->usage;
  } else {
    one->good = 0;
  }
  one->event_length = 0;
}

static void take_payload(Asking *one, const char *bytes, int length, int64_t now) {
  if (!one->first_ns) one->first_ns = now;
  while (length && one->good) {
    const char *end = memmem(bytes, length, "\n\n", 2);
    int size = end ? end + 2 - bytes : length;
    /* An end that is split between two reads. */
    int split = one->event_length && one->event[one->event_length - 1] == '\n' && *bytes == '\n';
    if (split) size = 1;
    if (one->event_length + size >= (int)sizeof one->event) {
      one->good = 0;
      return;
    }
    memcpy(one->event + one->event_length, bytes, size);
    one->event_length += size;
    if (end || split) take_event(one, now);
    bytes += size;
    length -= size;
  }
}

static int take_head(Asking *one, const char *end) {
  char *length = strcasestr(one->in, "\r\ncontent-length:"), *chunked = strcasestr(one->in, "\r\ntransfer-encoding: chunked");
  one->good &= !strncmp(one->in, "HTTP/1.1 200 ", 13);
  if (chunked && chunked < end) return one->next = SIZE, 1;
  if (!length || length > end) return 0;
  one->left = atoll(length + 17);
  one->next = BODY;
  return 1;
}

/* Take apart what came. Returns 1 if the answer is complete, 0 if more has to come, -1 if it is broken. */
static int take(Asking *one, int64_t now) {
  char *at = one->in, *end = one->in + one->length, *line;
  int complete = 0;
  while (at < end && !complete) {
    if (one->next == DATA || one->next == BODY) {
      int64_t size = end - at < one->left ? end - at : one->left;
      if (events_wanted) {
        take_payload(one, at, size, now);
      } else {
        if (!one->first_ns) one->first_ns = now;
        if (one->left > size) break; /* a body is looked at when all of it is there */
        one->usage = memmem(at, size, "\"usage\":{", 9) != 0;
      }
      at += size;
      if (!(one->left -= size)) one->next == BODY ? (complete = 1) : (one->next = DATA_END);
      continue;
    }
    *end = 0;
    if (!(line = strstr(at, one->next == HEAD ? "\r\n\r\n" : "\r\n"))) break;
    char *after = line + (one->next == HEAD ? 4 : 2);
    if (one->next == HEAD) {
      if (!take_head(one, line)) return -1;
    } else if (one->next == SIZE) {
      one->next = (one->left = strtoll(at, 0, 16)) ? DATA : LAST;
    } else if (line != at) { /* DATA_END and LAST are empty lines */
      return -1;
    } else {
      complete = one->next == LAST;
      one->next = SIZE;
    }
    at = after;
  }
  memmove(one->in, at, one->length = end - at);
  return complete ? 1 : one->length >= BUFFER - 1 ? -1 : 0;
}

/* The answer ended, one way or the other. */
static void finish(int place, int64_t now) {
  Asking *one = &asking[place];
  int is_good = one->good && one->usage && one->length == 0;
  if (events_wanted) is_good &= one->events == events_wanted && one->done;
  is_good ? good++ : bad++;
  if (is_good) {
    keep(&answer_ns, now - one->due_ns);
    keep(&first_ns, one->first_ns - one->due_ns);
  }
  one->busy = 0;
  idle[(idle_first + idle_count++) % connections] = place;
}

static void read_answer(int place) {
  Asking *one = &asking[place];
  int got = recv(one->fd, one->in + one->length, BUFFER - 1 - one->length, MSG_DONTWAIT);
  int64_t now = now_ns();
  if (got < 0 && errno == EAGAIN) return;
  int state = -1;
  if (got > 0 && one->busy) {
    one->length += got;
    reads++;
    state = take(one, now);
  }
  if (state < 0) { /* broken, or an idle connection that was closed */
    close(one->fd);
    connect_place(place);
    reconnected++;
    one->good = 0;
  }
  if (state && one->busy) finish(place, now);
}

static int ascending(const void *left, const void *right) {
  int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
  return (a > b) - (a < b);
}

static void print_samples(const char *name, Samples *samples) {
  double p50 = 0, p99 = 0;
  if (samples->count) {
    qsort(samples->values, samples->count, sizeof(int64_t), ascending);
    p50 = samples->values[samples->count / 2] / 1e3;
    p99 = samples->values[samples->count * 99 / 100] / 1e3;
  }
  printf(", \"%s_p50_us\": %.1f, \"%s_p99_us\": %.1f", name, p50, name, p99);
}

static void write_request(const char *address, const char *port, const char *key, const char *model) {
  char body[4096];
  int length = sprintf(body, "{\"model\":\"%s\",\"max_tokens\":512,%s\"messages\":[{\"role\":\"user\",\"content\":\"", model,
                       events_wanted ? "\"stream\":true,\"stream_options\":{\"include_usage\":true}," : "");
  for (int line = 0; line < 16; line++) length += sprintf(body + length, "What did the gatekeeper write down? ");
  length += sprintf(body + length, "\"}]}");
  request_length = sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nhost: %s:%s\r\nauthorization: Bearer %s\r\n"
                                    "content-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
                           address, port, key, length, body);
}

static int64_t after(int64_t due_ns, double rate, int random) {
  /* Users do not know of each other: gaps between them are distributed exponentially. */
  return due_ns + (random ? -log(1 - drand48()) : 1) * 1e9 / rate;
}

static void ask(double seconds, double rate, long most, int random) {
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  int64_t began = now_ns(), end = began + seconds * 1e9, due = began;
  long asked = 0;
  /* In a closed loop the first requests are spread as well: streams that begin at once would stay in step. */
  double pace = rate ? rate : connections / (interval_us ? interval_us / 1e6 : 0.01);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = -1}, events[BATCH];
  epoll_ctl(polled, EPOLL_CTL_ADD, timer, &event);
  for (;;) {
    int64_t now = now_ns();
    int starting = rate > 0 || asked < connections;
    while (idle_count && now < end && (!most || asked < most) && (!starting || due <= now)) {
      int place = idle[idle_first];
      idle_first = (idle_first + 1) % connections, idle_count--, asked++;
      ask_at(place, starting ? due : now);
      if (starting) due = after(due, pace, random);
      starting = rate > 0 || asked < connections;
    }
    int over = now >= end || (most && asked >= most);
    if ((over && idle_count == connections) || now > end + GRACE_S * 1000000000LL) break;
    if (!over && starting && idle_count) set_timer(timer, due, 0);
    int found = epoll_wait(polled, events, BATCH, 100);
    for (int each = 0; each < found; each++) {
      if (events[each].data.fd < 0) clear_timer(timer);
      else read_answer(events[each].data.fd);
    }
  }
  bad += connections - idle_count;
  printf("{\"seconds\": %.3f, \"good\": %ld, \"bad\": %ld, \"reconnected\": %ld, \"events\": %ld, \"reads\": %ld, \"held\": %ld, "
         "\"held_first\": %ld",
         (now_ns() - began) / 1e9, good, bad, reconnected, delay_ns.count, reads, held, held_first);
  print_samples("answer", &answer_ns);
  print_samples("first", &first_ns);
  print_samples("event", &delay_ns);
  puts("}");
}

int main(int count, char **words) {
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  polled = epoll_create1(0);
  if (count == 4 && !strcmp(words[1], "serve")) serve(loopback(words[2], words[3]));
  if (count != 11 || strcmp(words[1], "ask")) {
    fputs("load: the top of load.c says how it is called\n", stderr);
    return 2;
  }
  target = loopback(words[2], words[3]);
  events_of(words[5], &events_wanted, &interval_us);
  write_request(words[2], words[3], words[4], words[5]);
  connections = atoi(words[6]);
  asking = calloc(connections, sizeof *asking);
  idle = calloc(connections, sizeof *idle);
  for (int place = 0; place < connections; place++) {
    connect_place(place);
    idle[idle_count++] = place;
  }
  ask(atof(words[7]), atof(words[8]), atol(words[9]), !strcmp(words[10], "random"));
}
